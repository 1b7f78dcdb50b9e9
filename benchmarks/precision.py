"""Training losses of a sweep's runs, of one task each: one picture, and the numbers as JSON.

python -m benchmarks.precision SWEEP_JSON … --against VARIANT --picture FILE --json FILE
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
            points = losses(Path(run.path))
            found[run.variant] = {
                "score": run.measures.average_performance,
                "last": fmean(loss for _, loss in points[-LAST:]),
                "loss": points,
            }
    return found


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
    base = [loss for _, loss in found[options.against]["loss"]]
    for values in found.values():
        if "loss" in values:
            pairs = zip((loss for _, loss in values["loss"]), base, strict=True)
            values["distance"] = fmean(abs(a - b) for a, b in pairs)
    lines = [Curve(label(name), v["loss"]) for name, v in found.items() if "loss" in v]
    write_text(options.picture, curves(lines, "Training loss", "step", scale="from zero") + "\n")
    write_json(options.json, found)
    print(f"| variant | loss, mean of the last {LAST} steps | mean distance | score |")
    print("|---|---|---|---|")
    for name, values in found.items():
        if "loss" in values:
            numbers = f"{values['last']:.3f} | {values['distance']:.3f} | {values['score']:.1f}"
            print(f"| `{name}` | {numbers} |")


if __name__ == "__main__":
    main()
