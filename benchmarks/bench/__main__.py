"""Cost of retain compared with what a user would run instead: `make bench`.

    python -m benchmarks.bench [--json FILE] [--only GROUP …] [--rounds N]

The bench model is a LLaMA of width 1024 (MLP 2816, 4 layers, 8 heads, vocabulary 8192) with random
weights, LoRA of rank 8 on q and v, all positions labelled, batch 8 x 128 unless a row says
otherwise. The rows in bfloat16 are of two layers of LLaMA-2-7B's shape, and in the `narrow` ones of
the bench model. The sides of a row take turns in one process; the first round is not counted; a
ratio is the median over rounds. Rows without a target are for comparison. Peak memory and starts
are those of fresh processes. Frozen blocks of retain's pool pass no gradient to their input, as in
SAPT's published code; PEFT's adapters do, and have no weights to mix with.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import transformers

from benchmarks import seekr_step
from benchmarks.bench import answers, pool, start, tasks
from benchmarks.timing import Side, times_of
from retain.system.files import write_json

Times = dict[str, list[float]]


@dataclass(frozen=True)
class Row:
    """A ratio of two sides: `above` over `below`.

    Attributes:
        key: its name in the JSON file.
        group: the sides that take turns.
        target: what the ratio should be at most, as in "≤ 1.04", or at least; empty for none.
        floor: by counting operations, where there is one.
    """

    key: str
    group: str
    above: str
    below: str
    target: str = ""
    floor: str = ""

    def met(self, ratio: float) -> bool:
        """Whether a ratio is as it should be."""
        sign, _, bound = self.target.partition(" ")
        return not sign or (ratio <= float(bound) if sign == "≤" else ratio >= float(bound))


ROWS = [
    Row("pool_15_vs_single", "pool", "pool 15", "single", "≤ 1.04", "1.02"),
    Row("pool_100_vs_single", "pool", "pool 100", "single", "≤ 1.18", "1.16"),
    Row("pool_50_naive_vs_fused", "pool", "naive 50", "pool 50"),
    Row("pool_15_peft_vs_fused", "pool", "peft 15", "pool 15"),
    Row("pool_50_peft_vs_fused", "pool", "peft 50", "pool 50"),
    Row("pool_15_bf16_vs_single", "bf16", "pool 15", "single", "≤ 1.04", "1.01"),
    Row("pool_100_bf16_vs_single", "bf16", "pool 100", "single", "≤ 1.1", "1.05"),
    Row("pool_15_bf16_narrow_vs_single", "bf16", "pool 15 narrow", "single narrow", "", "1.02"),
    Row("pool_100_bf16_narrow_vs_single", "bf16", "pool 100 narrow", "single narrow", "", "1.16"),
    Row("compiled_vs_eager", "compiled", "compiled", "eager"),
    Row("adamw_fused_vs_plain", "optimizer", "fused", "plain"),
    Row("sapt_task_vs_pertask", "sapt", "sapt", "pertask", "≤ 1.08", "1"),
    Row("sapt_attention_task_vs_pertask", "sapt", "sapt attention", "pertask"),
    Row("seekr_step_vs_plain", "seekr", "seekr", "plain", "≤ 1.05", "1.02"),
    Row("eager_vs_seekr", "seekr", "eager", "seekr"),
    Row("seekr_step_2048_vs_plain", "seekr 2048", "seekr", "plain", "≤ 1.05", "1.02"),
    Row("seekr_memory_vs_plain", "memory", "seekr", "plain", "≤ 1.1", "1.02"),
    Row("padded_per_real_token", "padding", "computed", "real", "≤ 1.15", "1"),
    Row("padded_per_real_token_unsorted", "padding", "unsorted", "real", "", "1"),
    Row("seqlora_vs_trainer_peft_grouped", "train", "seqlora", "trainer", "≤ 1", "1"),
    Row("decode_15_vs_merged", "decode", "merged", "pool 15", "≥ 0.95", "0.97"),
    Row("eval_pipeline_vs_retain", "evaluate", "pipeline", "retain", "≥ 1.5"),
    Row("route_400_vs_prefill", "route", "route", "prefill", "≤ 0.01"),
    Row("start_methods_seconds", "start", "methods", "one second", "≤ 0.3"),
    Row("start_generate_vs_transformers", "start", "generate", "transformers", "≤ 1.2"),
]


@contextmanager
def seekr_sides(kinds: tuple[str, ...], length: int) -> Iterator[dict[str, Side]]:
    with tempfile.TemporaryDirectory() as folder:
        made = seekr_step.Bench(Path(folder), length=length)
        yield {kind: partial(made.step, kind) for kind in kinds}


def timed(make: Callable[[], AbstractContextManager[dict[str, Side]]], rounds: int) -> Times:
    """Measures the seconds of each side in each round."""
    with make() as sides:
        return times_of(sides, rounds)


def sapt_times(rounds: int) -> Times:
    with tasks.sapt_sides() as (sides, prepare):
        return times_of(sides, rounds, prepare)


def memory(rounds: int) -> Times:
    """Measures the peak megabytes of fresh processes."""
    return {
        kind: [seekr_step.peak_memory(kind) for _ in range(rounds)] for kind in ("seekr", "plain")
    }


GROUPS: dict[str, tuple[Callable[[int], Times], int]] = {
    "pool": (partial(timed, pool.float32_sides), 7),
    "bf16": (partial(timed, pool.bfloat16_sides), 7),
    "optimizer": (partial(timed, pool.optimizer_sides), 11),
    "sapt": (sapt_times, 4),
    "seekr": (partial(timed, partial(seekr_sides, seekr_step.KINDS, 1024)), 6),
    "seekr 2048": (partial(timed, partial(seekr_sides, ("plain", "seekr"), 2048)), 4),
    "memory": (memory, 2),
    "padding": (tasks.padding, 5),
    "train": (partial(timed, tasks.train_sides), 3),
    "decode": (partial(timed, answers.decode_sides), 9),
    "evaluate": (partial(timed, answers.evaluate_sides), 3),
    "route": (partial(timed, answers.route_sides), 31),
    "start": (start.start_times, 5),
    "compiled": (partial(timed, pool.compiled_sides), 5),
}
"""What measures a group, and rounds: more of the short ones."""


def group_times(group: str, rounds: int | None) -> Times:
    """Measures each side of a group in each round."""
    measure, usual = GROUPS[group]
    return measure(rounds or usual)


def ratio(above: list[float], below: list[float]) -> dict[str, Any]:
    """Returns the median and quartiles of the ratios of at least two rounds."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return {"median": round(middle, 4), "quartiles": [round(low, 4), round(high, 4)]}


def line(row: Row, found: dict[str, Any]) -> str:
    """Formats a row of the table."""
    low, high = found["quartiles"]
    missed = "" if row.met(found["median"]) else " (missed)"
    numbers = f"{found['median']:.3f} | {low:.3f} to {high:.3f}"
    return f"| `{row.key}` | {numbers} | {row.floor} | {row.target}{missed} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="also write the ratios here")
    parser.add_argument("--only", nargs="+", choices=GROUPS, help="these groups")
    parser.add_argument("--rounds", type=int, choices=range(2, 100), metavar="N")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    found: dict[str, dict[str, Any]] = {}
    print("| ratio | median | quartiles | by counting | target |\n|---|---|---|---|---|")
    for group in options.only or GROUPS:
        times = group_times(group, options.rounds)
        for row in (row for row in ROWS if row.group == group):
            found[row.key] = ratio(times[row.above], times[row.below])
            print(line(row, found[row.key]), flush=True)
        if options.json:
            write_json(options.json, found)


if __name__ == "__main__":
    main()
