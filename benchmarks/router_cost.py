"""What the router in closed form costs: a prompt among many tasks, and one more task.

    python -m benchmarks.router_cost --tasks 400 --tokens 100

A prompt's routing (pooling, whitening, cosines with all tasks) is timed in turn with the prefill of
the same prompt by the frozen backbone without blocks; ratios are of medians of CPU time. What tasks
hold are random numbers, since the cost does not depend on them. `kB` is what a task stores for the
router. A task's moments are then timed on random rows, exactly (`exact`, the cubic way) and as they
are computed.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.routing import MODEL
from benchmarks.timing import Side
from retain.backbone import Backbone, BackboneConfig
from retain.backbone.loading import load_backbone
from retain.methods.sapt import whitened
from retain.methods.sapt.options import RouterConfig
from retain.methods.sapt.router import AttentionRouter
from retain.methods.sapt.whitened import Moments, WhitenedRouter
from retain.system.files import write_json

ROUNDS = 5
ROWS = ((1000, 576), (2000, 2048), (8000, 4096))
"""Prompts of a task, and widths."""
CUBIC = 2048
"""Width up to which `exact` is timed: at 4096 it takes eight times as long."""


def filled(router: AttentionRouter | WhitenedRouter, tasks: int) -> int:
    """Adds so many tasks of random numbers; returns the bytes of one."""
    draw = torch.Generator().manual_seed(0)
    state: dict[str, torch.Tensor] = {}
    for _ in range(tasks):
        shapes = router.shapes().items()
        state = {name: torch.randn(shape, generator=draw).abs() for name, shape in shapes}
        if "count" in state:
            state["count"] = torch.tensor([100.0])
        router.load_task(state)
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())


def prompt_cost(backbone: Backbone, kind: str, layer: int, tasks: int, tokens: int) -> Any:
    """Times the routing of one prompt and its prefill in turn."""
    layers = {"layer": layer} if kind == "whitened" else {}
    router = RouterConfig.model_validate({"kind": kind, **layers}).make(backbone)
    size = filled(router, tasks)
    ids = [7 + number % 1000 for number in range(tokens)]
    batch = backbone.collate([{"input_ids": ids, "route_ids": ids}])
    model = backbone.model

    @torch.no_grad()
    def prefill() -> object:
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])

    @torch.no_grad()
    def route() -> object:
        return router.weights(batch)

    times = [(seconds_of(route), seconds_of(prefill)) for _ in range(ROUNDS + 1)][1:]
    routed, filling = (median(side) for side in zip(*times, strict=True))
    return {
        "router": kind,
        "layer": layer,
        "tasks": tasks,
        "tokens": tokens,
        "route_ms": 1000 * routed,
        "prefill_ms": 1000 * filling,
        "share": routed / filling,
        "bytes_per_task": size,
    }


def seconds_of(side: Side) -> float:
    """Measures CPU time, which leaves out what others compute meanwhile."""
    began = time.process_time()
    side()
    return time.process_time() - began


def moments_cost(rows: int, width: int) -> Any:
    """Times the moments of so many prompts, as they are and exactly."""
    z = torch.randn(rows, width, generator=torch.Generator().manual_seed(0))
    usual, seconds = whitened.EXACT, {}
    try:
        for name, limit in (("seconds", usual), ("exact", rows + width)):
            if name == "exact" and width > CUBIC:
                continue
            whitened.EXACT = limit
            seconds[name] = seconds_of(lambda: Moments.of(z))
    finally:
        whitened.EXACT = usual
    return {"prompts": rows, "width": width, **seconds}


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--tasks", type=int, default=400)
    parser.add_argument("--tokens", type=int, nargs="+", default=[100])
    parser.add_argument("--layers", type=int, nargs="+", default=[0])
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--json", type=Path, help="also write the result here")
    options = parser.parse_args()
    backbone = load_backbone(BackboneConfig(name=options.model))
    print("| router | layer | tokens | ms to route | ms of prefill | share | kB a task |")
    print("|---|---|---|---|---|---|---|")
    prompts = []
    for tokens in options.tokens:
        for kind, layer in [("attention", 0), *(("whitened", layer) for layer in options.layers)]:
            row = prompt_cost(backbone, kind, layer, options.tasks, tokens)
            prompts.append(row)
            times = f"{row['route_ms']:.2f} | {row['prefill_ms']:.1f} | {100 * row['share']:.2f} %"
            size = f"{row['bytes_per_task'] / 1000:.1f}"
            print(f"| {kind} | {layer} | {tokens} | {times} | {size} |", flush=True)
    moments = []
    for rows, width in ROWS:
        moments.append(moments_cost(rows, width))
        print(moments[-1], flush=True)
    if options.json:
        write_json(options.json, {"prompts": prompts, "moments": moments})


if __name__ == "__main__":
    main()
