"""What a task of few examples gains from a task learned before it.

    python -m benchmarks.transfer --pairs sentiment entailment --examples 16 32 64 --seeds 0 1 2 \
        --output runs/transfer --json transfer.json

For each pair of tasks the first is learned from all of its examples, and the second from a few:
with `pertask`, which transfers nothing; with `sapt` and the router in closed form, whose block
begins fresh; and with the same whose block begins as a copy of the first task's (`start: nearest`,
at any distance unless --above says otherwise). `before` is the second task's score just before it
is learned, `forgotten` what the first task loses by it; both are in points, as the score is.
Data: data/superni and data/long_sequence, as for configs/streams.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console

from retain import Learner, Task, load_stream
from retain.backbone import BackboneConfig
from retain.methods.sapt.start import START, Start
from retain.runs import results
from retain.system.files import write_json
from retain.system.progress import ConsoleProgress, Progress

SUPERNI = {"reader": "superni", "metric": "exact_match"}
SENTIMENT140 = {**SUPERNI, "path": "data/superni/task1687_sentiment140_classification"}
SST2 = {**SUPERNI, "path": "data/superni/task363_sst2_polarity_classification"}
RELATIONS = {**SUPERNI, "path": "data/superni/task1510_evalution_relation_extraction"}
EMOTIONS = {**SUPERNI, "path": "data/superni/task875_emotion_classification"}

PAIRS: dict[str, tuple[Mapping[str, str], Mapping[str, str]]] = {
    "sentiment": (SENTIMENT140, SST2),
    "labels": ({"reader": "long_sequence", "path": "data/long_sequence/sst2"}, SST2),
    "entailment": (
        {"reader": "long_sequence", "path": "data/long_sequence/rte"},
        {"reader": "long_sequence", "path": "data/long_sequence/cb"},
    ),
    "emotions": (SENTIMENT140, EMOTIONS),
    "unrelated": (RELATIONS, SST2),
}
"""The task that is learned first, and the one with few examples. `labels` has film reviews twice,
under other label words; `unrelated` is for losses where nothing can be gained."""

WHITENED = {"name": "sapt", "router": {"kind": "whitened"}}
VARIANTS: dict[str, dict[str, Any]] = {
    "pertask": {"name": "pertask"},
    "fresh": {**WHITENED, "start": "fresh"},
    "nearest": {**WHITENED, "start": "nearest"},
}


def method_of(variant: str, above: float) -> dict[str, Any]:
    """Returns the options of a variant's method."""
    options = VARIANTS[variant]
    return {**options, "start_above": above} if variant == "nearest" else options


def second_task(folder: Path, first: Path, task: Task, progress: Progress) -> dict[str, Any]:
    """Learns the second task in a copy of the first one's run; returns its scores and its start."""
    shutil.copytree(first, folder)
    learner = Learner.load(folder, progress)
    began = time.monotonic()
    learner.learn(task)
    scores = results.final_scores(learner.run)
    start = results.read(learner.run, learner.run.learned()[-1] / START, Start)
    ((at_first,), (now, score)) = scores.matrix
    assert at_first is not None
    assert now is not None
    return {
        "score": score,
        "before": scores.zero_shot[1],
        "forgotten": at_first - now,
        "cosine": start.cosine if start else None,
        "copied": start.copied if start else False,
        "seconds": round(time.monotonic() - began, 1),
    }


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Runs every pair, seed, variant and number of examples; a row of numbers for each.

    The first task is learned once per pair, seed and variant.
    """
    progress = ConsoleProgress(Console(stderr=True, emoji=False), "transfer")
    rows: list[dict[str, Any]] = []
    for pair, seed, variant in product(options.pairs, options.seeds, options.variants):
        first, *seconds = few(pair, options.examples)
        folder = options.output / f"{pair}-{variant}-{seed}"
        learner = Learner(
            BackboneConfig(name=options.backbone),
            method_of(variant, options.above),
            folder,
            training={
                "max_steps": options.steps,
                "per_device_train_batch_size": 8,
                "learning_rate": 1e-3,
            },
            evaluation={
                "max_new_tokens": 8,
                "limit": options.limit,
                "batch_size": 50,
                "zero_shot": True,
            },
            prompt={"max_prompt_tokens": 256},
            seed=seed,
            progress=progress,
        )
        learner.learn(first)
        for count, task in zip(options.examples, seconds, strict=True):
            case = {"pair": pair, "seed": seed, "examples": count, "variant": variant}
            place = folder.with_name(f"{folder.name}-{count}")
            rows.append({**case, **second_task(place, folder, task, progress)})
    return rows


def few(pair: str, counts: Sequence[int]) -> list[Task]:
    """Returns the first task of a pair, and the second with each number of training examples."""
    first, second = PAIRS[pair]
    return [
        *load_stream([first]),
        *(load_stream([{**second, "train_limit": n}])[0] for n in counts),
    ]


def shown(number: float | None, digits: int = 1) -> str:
    """Returns a number as a cell of the table."""
    return "–" if number is None else f"{number:.{digits}f}"


def main(arguments: Sequence[str] | None = None) -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=["sentiment", "entailment"])
    parser.add_argument("--examples", nargs="+", type=int, default=[16, 32, 64])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=20, help="per task, of 8 rows")
    parser.add_argument("--limit", type=int, default=100, help="test examples per task")
    parser.add_argument("--above", type=float, default=-1.0, help="method.start_above")
    parser.add_argument("--backbone", default="models/SmolLM2-135M-Instruct")
    parser.add_argument("--output", type=Path, default=Path("runs/transfer"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    rows = measure(options)
    print("| pair | examples | seed | variant | score | before | forgotten | cosine | copied |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        cells = [row["pair"], row["examples"], row["seed"], row["variant"], shown(row["score"])]
        cells += [shown(row["before"]), shown(row["forgotten"]), shown(row["cosine"], 2)]
        print(f"| {' | '.join(map(str, cells))} | {'yes' if row['copied'] else 'no'} |")
    if options.json is not None:
        settings = {name: str(value) for name, value in vars(options).items()}
        write_json(options.json, {"settings": settings, "rows": rows})


if __name__ == "__main__":
    main()
