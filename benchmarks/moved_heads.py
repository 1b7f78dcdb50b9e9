"""Whether attention heads that moved more tell which answers are lost.

    python -m benchmarks.moved_heads RUN … [--examples 60]

RUN is a run of seekr with `tune: lora`, whose tasks all keep their weights. Per old task the model
right after it and the model at the end answer the task's test examples. An example's loss of answer
is the increase of its cross-entropy; a head's movement on it is the root mean square change of its
attention weights (SEEKR's forgettability, arXiv 2411.06171, eq. 9). For each head the rank
correlation of the two over examples says whether its movement tells which answers are lost. The
table compares the heads that SEEKR chose, those that moved most, and all.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retain.backbone.losses import cross_entropy
from retain.layers.attention_capture import Wanted
from retain.learner.learner import Learner
from retain.learner.upkeep import roll_back
from retain.methods.seekr import Seekr
from retain.methods.seekr.diagnostics import HEADS
from retain.system.files import read_json
from retain.tasks import Example


def ranks(values: Tensor) -> Tensor:
    """Returns the ranks (N, …) of values (N, …) along their first dimension, centred."""
    order = values.argsort(0).argsort(0).float()
    return order - order.mean(0)


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Computes Spearman's correlation over the first dimension of a (N, …) and b (N, …)."""
    a, b = ranks(a), ranks(b)
    return (a * b).sum(0) / (a.square().sum(0) * b.square().sum(0)).sqrt()


def observed(learner: Learner, examples: Sequence[Example]) -> tuple[Tensor, list[list[Tensor]]]:
    """Returns the examples' cross-entropy (N,), and their attention, (H, S, S) by module."""
    method = learner.method
    assert isinstance(method, Seekr)
    losses, attention = [], []
    method.capture.on()
    for example in examples:
        batch = learner.backbone.collate([learner.backbone.encode(example)])
        method.capture.clear()
        method.capture.wanted = {
            name: Wanted(torch.arange(module.heads)) for name, module in method.modules.items()
        }
        method.route(batch)
        with torch.no_grad():
            losses.append(cross_entropy(*learner.backbone.answer_logits(batch)))
        attention.append([method.capture.weights[name][0].half() for name in method.modules])
    method.capture.off()
    return torch.stack(losses), attention


def moved(before: list[list[Tensor]], after: list[list[Tensor]]) -> Tensor:
    """Computes how far each head's attention moved on each example, (N, layers · heads)."""
    rows = []
    for old, new in zip(before, after, strict=True):
        change = [
            (b.float() - a.float()).square().mean((1, 2)).sqrt()
            for a, b in zip(old, new, strict=True)
        ]
        rows.append(torch.cat(change))
    return torch.stack(rows)


def at_task(run: Path, task: str) -> Learner:
    """Loads a run as it was right after a task, from a copy that is rolled back."""
    # Beside the run, since a run may name its backbone by a path from its own place.
    with tempfile.TemporaryDirectory(dir=run.parent) as folder:
        shutil.copytree(run, folder, dirs_exist_ok=True)
        roll_back(Path(folder), task)
        return Learner.load(folder)


def compare(run: Path, limit: int) -> list[dict[str, Any]]:
    """Returns one row per old task of a run."""
    last = Learner.load(run)
    rows = []
    for folder, task in zip(last.run.learned()[:-1], last.tasks[:-1], strict=True):
        examples = task.test[:limit]
        losses, attention = observed(at_task(run, task.name), examples)
        final_losses, final_attention = observed(last, examples)
        lost, movement = final_losses - losses, moved(attention, final_attention)
        tells = rank_correlation(movement, lost[:, None].expand_as(movement))  # (heads,)
        mean_movement = movement.mean(0)
        chosen = torch.tensor(read_json(folder / HEADS)["selected"]).flatten().bool()
        most = mean_movement.topk(int(chosen.sum())).indices
        rows.append(
            {
                "run": run.name,
                "task": task.name,
                "examples": len(examples),
                "lost nats": float(lost.mean()),
                "all heads": float(tells.mean()),
                "chosen by SEEKR": float(tells[chosen].mean()),
                "moved most": float(tells[most].mean()),
                "movement against telling": float(rank_correlation(mean_movement, tells)),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--examples", type=int, default=60)
    arguments = parser.parse_args()
    rows = [row for run in arguments.runs for row in compare(run, arguments.examples)]
    print("| " + " | ".join(rows[0]) + " |\n" + "|---" * len(rows[0]) + "|")
    for row in rows:
        values = (f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values())
        print("| " + " | ".join(values) + " |")


if __name__ == "__main__":
    main()
