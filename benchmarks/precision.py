"""Training losses of a sweep's runs, of one task each: one picture, and the numbers as JSON.

python -m benchmarks.precision SWEEP_JSON … --picture FILE --json FILE
"""

from __future__ import annotations

import argparse
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
"""Steps over which the end of a curve is averaged."""


def losses(run: Path) -> list[tuple[int, float]]:
    """The task's loss at each logged step of its main phase."""
    (phase,) = (phase for phase in read_losses(results.open_run(run)) if "task" in phase.parts)
    return phase.parts["task"]


def read(sweeps: list[Path]) -> dict[str, dict[str, Any]]:
    """By variant the losses of its first finished run, their end, the score and the minutes."""
    found: dict[str, dict[str, Any]] = {}
    for sweep in sweeps:
        for run in read_record(Sweep, sweep).runs:
            if run.measures is None:
                if run.status == "failed":
                    found[run.variant] = {"failed": run.reason}
                continue
            points = losses(Path(run.path))
            found[run.variant] = {
                "score": run.measures.average_performance,
                "minutes": run.measures.minutes,
                "last": fmean(loss for _, loss in points[-LAST:]),
                "loss": points,
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweeps", nargs="+", type=Path, metavar="SWEEP_JSON")
    parser.add_argument("--picture", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    found = read(options.sweeps)
    lines = [Curve(name, values["loss"]) for name, values in found.items() if "loss" in values]
    write_text(options.picture, curves(lines, "Training loss", "step", scale="from zero") + "\n")
    write_json(options.json, found)
    print(f"| variant | loss, mean of the last {LAST} steps | score | minutes of training |")
    print("|---|---|---|---|")
    for name, values in found.items():
        if "loss" in values:
            numbers = f"{values['last']:.3f} | {values['score']:.1f} | {values['minutes']:.1f}"
            print(f"| `{name}` | {numbers} |")


if __name__ == "__main__":
    main()
