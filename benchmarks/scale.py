"""Growth of cost with the number of blocks (step, decoding, bytes, loading), length and width.

    python -m benchmarks.scale blocks [--blocks 1 15 50 100 300 500] [--picture FILE]
    python -m benchmarks.scale shapes

The bench model of benchmarks/bench. A step is forward and backward of a pool whose newest block
learns, with SAPT's router and its reflection on 20 pseudo-samples of each old task, 16 tasks at
most; `k = 8` computes the eight most attended blocks of a sample only. The sides take turns in one
process and the first round is not counted; times are divided by those of the first number of
blocks, round by round. Decoding and loading are of the pool's frozen blocks, as after a restart;
a run also reads and checks its other files.
`shapes` has the pool beside a single PEFT LoRA at several widths and lengths, and SEEKR's step
beside a plain one at several lengths.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
import transformers

from benchmarks import seekr_step
from benchmarks.bench import model as bench
from benchmarks.bench.pool import fused_pool, pool_of, single
from benchmarks.timing import Side, times_of
from retain.layers.lora_pool import LoraPool
from retain.methods.sapt.options import SaptConfig
from retain.methods.sapt.reflection import Reflection
from retain.methods.sapt.router import Router
from retain.report.plots import Curve, curves
from retain.system.files import write_text

KEPT = 8
SAMPLES = 20
"""Pseudo-samples of a task."""
SHAPES = [(512, 128), (1024, 32), (1024, 128), (1024, 512), (2048, 128)]
"""Width and sequence length."""
LENGTHS = [256, 512, 1024, 2048]
"""Of SEEKR's rows."""


def step(blocks: int, top_k: int | None) -> Side:
    """Returns a function that runs SAPT's forward and backward with that many blocks."""
    model = bench.bench_model()
    pool = pool_of(model, blocks)
    pool.mixture.top_k = top_k
    options = SaptConfig.model_validate({"router": {"kind": "attention"}})
    centre = torch.zeros(bench.WIDTH)
    router = Router(bench.WIDTH, options.router.hidden, None, centre, top_k)
    reflection = Reflection()
    for number in range(1, blocks):
        router.grow(torch.randn(bench.WIDTH))
        attention = torch.softmax(torch.randn(number), 0)
        reflection.add(torch.randn(SAMPLES, bench.WIDTH), attention)
    router.grow(torch.randn(bench.WIDTH))
    prompts = torch.randn(bench.BATCH, bench.WIDTH)
    ids = torch.randint(2, bench.VOCABULARY, (bench.BATCH, bench.LENGTH))

    def run() -> None:
        model.zero_grad()
        router.zero_grad()
        pool.use(router(prompts))
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        if blocks > 1:
            weight = options.reflection.weight or 0.0
            loss = loss + weight * reflection.loss(router, options.reflection.tasks)
        loss.backward()

    return run


def decode(blocks: int, top_k: int | None) -> Side:
    """Returns a function that decodes 32 tokens for each of 8 prompts of 64."""
    model = bench.bench_model()
    pool = pool_of(model, blocks)
    pool.freeze()
    pool.mixture.top_k = top_k
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
    """Saves `count` blocks as a run does."""
    pool = LoraPool(bench.bench_model(), bench.TARGETS, bench.RANK, bench.ALPHA)
    for i in range(count):
        pool.grow(f"b{i}", seed=i)
        pool.save_block(folder / f"b{i}", "bench")


def load(folder: Path, blocks: int) -> Side:
    """Returns a function that reads that many blocks into a pool and stacks them."""
    pool = LoraPool(bench.bench_model(), bench.TARGETS, bench.RANK, bench.ALPHA)

    def run() -> None:
        pool.clear()
        for i in range(blocks):
            pool.load_block(folder / f"b{i}", f"b{i}")
        assert all(len(layer.old_A) == blocks * bench.RANK for layer in pool.layers.values())

    return run


def growth(sides: Sequence[Side], rounds: int) -> tuple[list[float], list[float]]:
    """Returns each side's median time, and its median ratio to the first side in the same round."""
    times = list(times_of(dict(enumerate(sides)), rounds).values())
    ratios = [[t / base for t, base in zip(row, times[0], strict=True)] for row in times]
    return [statistics.median(row) for row in times], [statistics.median(row) for row in ratios]


def blocks_table(counts: list[int], rounds: int, picture: Path | None) -> None:
    """Prints the table of costs by number of blocks, relative to the first number."""
    columns = {
        "step": growth([step(n, None) for n in counts], rounds)[1],
        f"step, k = {KEPT}": growth([step(n, KEPT) for n in counts], rounds)[1],
        "decoding": growth([decode(n, None) for n in counts], rounds)[1],
        f"decoding, k = {KEPT}": growth([decode(n, KEPT) for n in counts], rounds)[1],
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_blocks(folder, max(counts))
        seconds, _ = growth([load(folder, n) for n in counts], rounds)
        files = [sum(f.stat().st_size for f in (folder / "b0").iterdir()) * n for n in counts]
    print(f"| blocks | {' | '.join(columns)} | blocks, MB on disk | blocks, seconds to load |")
    print("|---" * (len(columns) + 3) + "|")
    for i, count in enumerate(counts):
        ratios = " | ".join(f"{column[i]:.2f}" for column in columns.values())
        print(f"| {count} | {ratios} | {files[i] / 1e6:.1f} | {seconds[i]:.2f} |")
    if picture is not None:
        lines = [
            Curve(k, list(zip(map(float, counts), v, strict=True))) for k, v in columns.items()
        ]
        title = f"Time beside {counts[0]} block{'s' * (counts[0] > 1)}"
        write_text(picture, curves(lines, title, "blocks", scale="from zero"))


def shapes_tables(rounds: int) -> None:
    """What the pool and SEEKR's step cost beside their plain sides at other widths and lengths."""
    print("| width | length | pool of 15 | pool of 100 |\n|---|---|---|---|")
    for width, length in SHAPES:
        pools = [fused_pool(n, bench.bench_model(width), length) for n in (15, 100)]
        _, ratios = growth([single(bench.bench_model(width), length), *pools], rounds)
        print(f"| {width} | {length} | {ratios[1]:.3f} | {ratios[2]:.3f} |", flush=True)
    print("\n| length | SEEKR's step beside a plain one |\n|---|---|")
    for length in LENGTHS:
        with tempfile.TemporaryDirectory() as name:
            sides = seekr_step.Bench(Path(name), length=length)
            steps = [partial(sides.step, kind) for kind in ("plain", "seekr")]
            print(f"| {length} | {growth(steps, rounds)[1][1]:.3f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", choices=["blocks", "shapes"])
    parser.add_argument("--blocks", nargs="+", type=int, default=[1, 15, 50, 100, 300, 500])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--picture", type=Path, help="write the curves of `blocks` here, SVG")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    if options.table == "blocks":
        blocks_table(options.blocks, options.rounds, options.picture)
    else:
        shapes_tables(options.rounds)


if __name__ == "__main__":
    main()
