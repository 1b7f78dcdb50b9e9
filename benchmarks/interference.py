"""Two streams whose tasks interfere, and the answers that a method gives on them.

    python demo/make_stream.py && python -m benchmarks.interference write
    retain sweep configs/streams/interference-alike.yaml --variants sapt seqlora
    python -m benchmarks.interference read runs/sweep/interference-alike/sapt-0 …

Both begin with the demo's reviews and tickets. In `alike` the third task, `balance`, asks another
question about reviews, in a prompt that differs by its last word. In `labels` it is `stars`: the
very prompts of `reviews` with other words for the same three answers, so that without the task's
name no method can be right on both.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from retain.errors import RetainError
from retain.metrics.text import normalise
from retain.runs import results
from retain.system.files import read_jsonl, write_jsonl

DATA = Path("demo/data")
BALANCE = {"positive": "one-sided", "negative": "one-sided", "mixed": "balanced"}
STARS = {"positive": "five", "negative": "one", "mixed": "three"}
TWINS = ("reviews", "balance", "stars")
HEAD = "| run | AP | first | tickets | third | first: the third's words | third: the first's |"


def write() -> None:
    """Makes `balance` and `stars` from the demo's reviews."""
    for split in ("train", "test"):
        reviews = read_jsonl(DATA / f"reviews.{split}.jsonl")
        balance = [
            {
                "prompt": row["prompt"].removesuffix("Opinion:") + "Balance:",
                "answer": BALANCE[row["answer"]],
            }
            for row in reviews
        ]
        write_jsonl(DATA / f"balance.{split}.jsonl", balance)
        stars = [{**row, "answer": STARS[row["answer"]]} for row in reviews]
        write_jsonl(DATA / f"stars.{split}.jsonl", stars)


def read(folder: Path) -> str:
    """Returns a table line: final scores, and how many answers are words of the other task.

    Raises:
        RetainError: if the folder has no finished run of one of the two streams.
    """
    run = results.open_run(folder)
    scores = results.final_scores(run)
    paths = results.newest_predictions(run)
    rows = [read_jsonl(paths[name]) for name in scores.tasks if name in TWINS]
    if len(rows) != 2:
        raise RetainError(f"{folder}: not of these two streams, or not at its end; see --help")
    words = [{normalise(text) for row in task for text in row["references"]} for task in rows]
    strayed = [
        100 * fmean(normalise(row["prediction"]) in words[1 - i] for row in task)
        for i, task in enumerate(rows)
    ]
    end = scores.matrix[-1]
    cells = [f"{end[i]:.0f}" for i in range(len(end))] + [f"{share:.0f}" for share in strayed]
    return f"| {folder.name} | {scores.metrics['average_performance']:.1f} | {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("what", choices=["write", "read"])
    parser.add_argument("runs", nargs="*", type=Path)
    options = parser.parse_args(arguments)
    try:
        if options.what == "write":
            write()
            return
        lines = [read(folder) for folder in options.runs]
    except RetainError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(HEAD, "|---" * 7 + "|", *lines, sep="\n")


if __name__ == "__main__":
    main()
