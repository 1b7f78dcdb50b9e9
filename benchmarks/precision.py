"""Training losses of a sweep's runs, task after task: one picture, and the numbers as JSON.

python -m benchmarks.precision SWEEP_JSON … --against VARIANT --picture FILE --json FILE
"""

from __future__ import annotations

import argparse
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import Any

from retain.report.losses import read_losses
from retain.report.plots import Curve, curves
from retain.runs import results
from retain.runs.records import read_record
from retain.sweep.result import Sweep
from retain.system.files import write_json, write_text

LAST = 10
"""Steps over which the end of a task's curve is averaged."""


def losses(run: Path) -> list[list[float]]:
    """By task, the loss at each step of its main phase.

    Raises:
        SystemExit: when a step was not logged.
    """
    phases = [phase for phase in read_losses(results.open_run(run)) if "task" in phase.parts]
    if any(len(phase.parts["task"]) != phase.steps for phase in phases):
        raise SystemExit(f"{run}: a step has no loss; run it with training.logging_steps=1")
    return [[loss for _, loss in phase.parts["task"]] for phase in phases]


def read(sweeps: list[Path]) -> dict[str, dict[str, Any]]:
    """By variant the losses of its run, their end and the score, or why there is none.

    A variant that several sweeps have is that of the last one.
    """
    found: dict[str, dict[str, Any]] = {}
    for sweep in sweeps:
        for run in read_record(Sweep, sweep).runs:
            if run.measures is None:
                if run.status == "failed":
                    found[run.variant] = {"failed": run.reason}
                continue
            tasks = losses(Path(run.path))
            found[run.variant] = {
                "score": run.measures.average_performance,
                "last": [fmean(task[-LAST:]) for task in tasks],
                "loss": tasks,
            }
    return found


def points(tasks: list[list[float]]) -> list[tuple[float, float]]:
    """A curve over the steps of all tasks, one after the other."""
    return list(enumerate((loss for task in tasks for loss in task), 1))


def label(variant: str) -> str:
    """Method and backbone of a variant, without the names of options: a legend is narrow."""
    method, *options = variant.split()
    kept = (option for option in options if option.startswith("backbone."))
    return " ".join([method, *(option.rpartition("=")[2] for option in kept)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweeps", nargs="+", type=Path, metavar="SWEEP_JSON")
    parser.add_argument("--against", required=True, metavar="VARIANT")
    parser.add_argument("--picture", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    found = read(options.sweeps)
    if "loss" not in found.get(options.against, {}):
        parser.error(f"no finished run of '{options.against}'; name one of {', '.join(found)}")
    base = found[options.against]["loss"]
    finished = {name: values for name, values in found.items() if "loss" in values}
    for values in finished.values():
        values["distance"] = [
            fmean(abs(loss - other) for loss, other in zip(task, of_base, strict=True))
            for task, of_base in zip(values["loss"], base, strict=True)
        ]
    ends = list(accumulate(len(task) for task in base))
    lines = [Curve(label(name), points(v["loss"])) for name, v in finished.items()]
    picture = curves(lines, "Training loss", "step", marks=ends[:-1], scale="from zero")
    write_text(options.picture, picture + "\n")
    write_json(options.json, found)
    print(f"| variant | loss, mean of each task's last {LAST} steps | mean distance | score |")
    print("|---|---|---|---|")
    for name, values in finished.items():
        last, distance = (" ".join(f"{v:.3f}" for v in values[key]) for key in ("last", "distance"))
        print(f"| `{name}` | {last} | {distance} | {values['score']:.1f} |")


if __name__ == "__main__":
    main()
