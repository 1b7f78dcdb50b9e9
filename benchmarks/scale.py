"""How cost grows with the number of blocks: a step, decoding, bytes on disk, loading.

    python -m benchmarks.scale [--blocks 1 15 50 100 300 500] [--rounds N] [--picture FILE]

The bench model of benchmarks/bench.py. A step is forward and backward of a pool whose newest block
learns; `k = 8` computes the eight most attended frozen blocks of a sample only. The sides take
turns in one process and the first round is not counted; times are divided by those of the first
number of blocks, round by round. Decoding and loading are of frozen blocks, as after a restart.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers

from benchmarks import bench
from benchmarks.timing import Side, times_of
from retain.files import write_text
from retain.layers.pooled_linear import LoraPool
from retain.report.plots import Curve, curves

KEPT = 8


def step(blocks: int, top_k: int | None) -> Side:
    """Forward and backward with so many blocks."""
    model = bench.bench_model()
    pool, weights = bench.pool_of(model, blocks), bench.mixing(blocks)
    pool.mixture.top_k = top_k
    return bench.step_of(model, lambda: pool.use(weights))


def decode(blocks: int) -> Side:
    """32 tokens for each of 8 prompts of 64."""
    model = bench.bench_model()
    pool = bench.pool_of(model, blocks)
    pool.freeze()
    ids = torch.randint(2, bench.VOCABULARY, (8, 64))
    weights = torch.softmax(torch.randn(8, blocks), 1)

    def run() -> None:
        pool.use(weights)
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=32,
            min_new_tokens=32,
            do_sample=False,
        )

    return run


def write_blocks(folder: Path, count: int) -> None:
    """Saves so many blocks, as a run does."""
    pool = LoraPool(bench.bench_model(), bench.TARGETS, bench.RANK, bench.ALPHA)
    for i in range(count):
        pool.grow(f"b{i}")
        pool.save_block(folder / f"b{i}", "bench")


def load(folder: Path, blocks: int) -> Side:
    """Reading so many blocks into a pool, stacked for the first forward."""
    pool = LoraPool(bench.bench_model(), bench.TARGETS, bench.RANK, bench.ALPHA)

    def run() -> None:
        pool.clear()
        for i in range(blocks):
            pool.load_block(folder / f"b{i}", f"b{i}")
        assert all(len(layer.old_A) == blocks * bench.RANK for layer in pool.layers.values())

    return run


def growth(sides: Sequence[Side], rounds: int) -> tuple[list[float], list[float]]:
    """Of each side the median time, and the median ratio to the first side's of the same round."""
    times = list(times_of(dict(enumerate(sides)), rounds).values())
    ratios = [[t / base for t, base in zip(row, times[0], strict=True)] for row in times]
    return [statistics.median(row) for row in times], [statistics.median(row) for row in ratios]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", nargs="+", type=int, default=[1, 15, 50, 100, 300, 500])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--picture", type=Path, help="also write the curves here, as SVG")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    counts: list[int] = options.blocks
    columns = {
        "step": growth([step(n, None) for n in counts], options.rounds)[1],
        f"step, k = {KEPT}": growth([step(n, KEPT) for n in counts], options.rounds)[1],
        "decoding": growth([decode(n) for n in counts], options.rounds)[1],
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_blocks(folder, max(counts))
        seconds, _ = growth([load(folder, n) for n in counts], options.rounds)
        files = [sum(f.stat().st_size for f in (folder / "b0").iterdir()) * n for n in counts]
    print(f"| blocks | {' | '.join(columns)} | MB on disk | seconds to load |")
    print("|---" * (len(columns) + 3) + "|")
    for i, count in enumerate(counts):
        ratios = " | ".join(f"{column[i]:.2f}" for column in columns.values())
        print(f"| {count} | {ratios} | {files[i] / 1e6:.1f} | {seconds[i]:.2f} |")
    if options.picture is not None:
        lines = [
            Curve(k, list(zip(map(float, counts), v, strict=True))) for k, v in columns.items()
        ]
        title = f"Time beside {counts[0]} block{'s' * (counts[0] > 1)}"
        write_text(options.picture, curves(lines, title, "blocks", scale="from zero"))


if __name__ == "__main__":
    main()
