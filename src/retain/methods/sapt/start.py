"""What a new block begins as: a fresh one, or a copy of a learned task's block."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from retain.backbone import Backbone
from retain.errors import RetainError
from retain.layers.lora_pool import LoraPool
from retain.layers.soft_prompt import PromptPool
from retain.runs import results
from retain.runs.directory import RunDirectory
from retain.runs.labels import short
from retain.runs.records import Record
from retain.runs.sections import Grid, Section
from retain.tasks import Task

START = "start.json"
"""File in a task's folder, unless `start: fresh`."""
TRIED, ROWS, BATCH = 8, 32, 8
"""Blocks that `start: lowest_loss` tries, training examples that it asks, and those a forward."""
HEADERS = ["older task", "cosine", "loss", "loss, fresh", "block"]


class Start(Record):
    """`start.json`: the learned task whose block was considered for this one.

    Attributes:
        nearest: its name; None for the first task.
        cosine: the whitened cosine of the two tasks' means, from −1 to 1.
        loss: the loss on this task's answers with that block, in nats per token; None under
            `start: nearest`.
        fresh_loss: the loss with a fresh block; of LoRAs, the backbone's own.
        copied: whether the new block began as a copy of that task's block.
    """

    nearest: str | None = None
    cosine: float | None = None
    loss: float | None = None
    fresh_loss: float | None = None
    copied: bool = False

    def __str__(self) -> str:
        how = "as a copy of that task's" if self.copied else "fresh"
        if self.loss is None:
            why = f"nearest task '{self.nearest}', cosine {self.cosine:.2f}"
        else:
            losses = f"{self.loss:.2f}, of a fresh block {self.fresh_loss:.2f}"
            why = f"lowest loss, of task '{self.nearest}', {losses}"
        return f"{why}: the block begins {how}"


def nearest(blocks: Sequence[str], cosines: Sequence[float], above: float) -> Start:
    """Chooses the task of the largest cosine, of equally near ones the oldest.

    Args:
        blocks: the tasks' names.
        cosines: of the older tasks with the newest.
        above: the cosine from which its block is copied.
    """
    index = max(range(len(cosines)), key=cosines.__getitem__)
    return Start(nearest=blocks[index], cosine=cosines[index], copied=cosines[index] >= above)


def lowest_loss(
    backbone: Backbone, pool: LoraPool | PromptPool, cosines: Sequence[float], task: Task
) -> Start:
    """Chooses the block, of the TRIED nearest tasks', with the lowest loss on the task's answers.

    It is copied if its loss is lower than a fresh block's. This costs ROWS forward passes for each
    block tried and the fresh one: at most the time of training on 100 examples.

    Args:
        backbone: with the pool's layers.
        pool: whose newest block is fresh.
        cosines: of the older tasks with the newest.
        task: the newest task.

    Raises:
        RetainError: when a block's loss is not finite.
    """
    rows = [backbone.encode(example) for example in task.train[:ROWS]]
    batches = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
    backbone.model.eval()

    def loss(index: int) -> float:
        """Returns the mean over batches, in nats per answer token."""
        total = 0.0
        for batch in map(backbone.collate, batches):
            pool.use_block(len(batch["input_ids"]), index)
            with torch.no_grad():
                total += float(backbone.answer_loss(batch))
        if not math.isfinite(total):
            raise RetainError(
                f"task '{task.name}': the block of '{pool.blocks[index]}' gives a loss of {total} "
                "on its answers, so nothing can be compared; set method.start=fresh, or "
                "backbone.dtype=float32 for a number too large"
            )
        return total / len(batches)

    tried = sorted(range(len(cosines)), key=cosines.__getitem__, reverse=True)[:TRIED]
    losses = {index: loss(index) for index in tried}
    best, fresh = min(losses, key=losses.__getitem__), loss(len(cosines))
    pool.use(None)
    return Start(
        nearest=pool.blocks[best],
        cosine=cosines[best],
        loss=losses[best],
        fresh_loss=fresh,
        copied=losses[best] < fresh,
    )


def start_diagnostics(run: RunDirectory) -> list[Section]:
    """Returns the section on what each block began as; no section under `start: fresh`."""
    rows = []
    for folder in run.learned():
        start = results.read(run, folder / START, Start)
        if start is not None:
            values = (start.cosine, start.loss, start.fresh_loss)
            numbers = ["–" if value is None else f"{value:.2f}" for value in values]
            cells = [short(start.nearest or "–"), *numbers, "a copy" if start.copied else "fresh"]
            rows.append((short(results.task_record(run, folder).name), cells))
    if not rows:
        return []
    return [
        Section(
            "What each block began as",
            [Grid("What each block began as", HEADERS, rows)],
            caption=(
                "start: nearest takes the task learned before with the largest whitened cosine of "
                "the mean prompts, and copies its block above method.start_above. lowest_loss "
                "takes the one whose block has the lowest loss on the new task's answers, and "
                "copies it if a fresh block's is higher."
            ),
        )
    ]
