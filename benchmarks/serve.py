"""Throughput of `retain serve` under load, compared with one prompt at a time in one process.

    python -m benchmarks.serve RUN

The server is a process of its own, the clients are threads of this one, and each sends its next
request when it has its answer. All ask the run's own test prompts. The first row is
`learner.generate` on one prompt at a time, with the server idle, which is what a script without a
server would do. On few cores, clients and server share them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import cycle, islice

from retain.learner.learner import Learner
from retain.serve import KEY

CLIENTS = (1, 4, 16)
Question = tuple[str, str]
"""A prompt and the name of its task."""


@contextmanager
def served(run: str) -> Iterator[str]:
    """Starts a server in a second process and yields its address."""
    command = [sys.executable, "-m", "retain", "serve", run, "--port", "0"]
    environment = {name: value for name, value in os.environ.items() if name != KEY}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            words = process.stdout.readline().split()
            if "at" not in words:  # it has said why not
                raise SystemExit(process.wait())
            yield words[words.index("at") + 1]
        finally:
            process.terminate()


def ask(url: str, question: Question) -> str:
    """Returns the answer to a prompt over HTTP."""
    prompt, task = question
    body = {"messages": [{"role": "user", "content": prompt}], "task": task}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(
        f"{url}v1/chat/completions", json.dumps(body).encode(), headers
    )
    with urllib.request.urlopen(request) as response:
        answer: str = json.load(response)["choices"][0]["message"]["content"]
    return answer


def load(
    answer: Callable[[Question], str], questions: list[Question], clients: int
) -> tuple[float, list[float], list[str]]:
    """Returns the seconds for all requests, the seconds of each, and the answers."""

    def timed(question: Question) -> tuple[float, str]:
        began = time.perf_counter()
        text = answer(question)
        return time.perf_counter() - began, text

    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        found = list(pool.map(timed, questions))
    whole = time.perf_counter() - began
    return whole, [seconds for seconds, _ in found], [text for _, text in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--requests", type=int, default=96, help="a row (default: 96)")
    options = parser.parse_args()
    learner = Learner.load(options.run)
    known = [(example.prompt, task.name) for task in learner.tasks for example in task.test]
    mixed = random.Random(0).sample(known, len(known))  # neighbours of different tasks
    questions = list(islice(cycle(mixed), options.requests))

    def alone(question: Question) -> str:
        return learner.generate([question[0]], question[1])[0]

    print("| | requests/s | median, ms | p95, ms | answers as alone |")
    print("|---|---|---|---|---|")
    with served(options.run) as url:
        rows: list[tuple[str, Callable[[Question], str], int]] = [("one at a time", alone, 1)]
        rows += [(f"served, {n} at once", lambda q: ask(url, q), n) for n in CLIENTS]
        expected: list[str] = []
        for name, answer, clients in rows:
            load(answer, questions[:clients], clients)  # warm
            whole, each, texts = load(answer, questions, clients)
            expected = expected or texts
            same = sum(a == b for a, b in zip(texts, expected, strict=True))
            middle, late = statistics.median(each), statistics.quantiles(each, n=20)[-1]
            rate = f"{len(questions) / whole:.2f} | {1000 * middle:.0f} | {1000 * late:.0f}"
            print(f"| {name} | {rate} | {same} of {len(texts)} |", flush=True)


if __name__ == "__main__":
    main()
