"""Progressive Prompts: a soft prompt per task, put before those of all earlier tasks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from retain.backbone import Backbone, Batch
from retain.backbone.backbone import PROMPT_KEYS
from retain.layers.soft_prompt import PromptPool
from retain.methods.base import (
    Footprint,
    Method,
    MethodConfig,
    ParamGroup,
    Phase,
    Presets,
    TaskContext,
    Traits,
    block_index,
    trainable,
)
from retain.tasks import Task


class ProgPromptConfig(MethodConfig):
    """Rows of a prompt, its rate (times training.learning_rate), and the residual layer's width.

    With `hidden` a prompt passes through x + LayerNorm(W₂ relu(W₁ x)) while it learns, W₁ to so
    many (800 in the published code, where it is off too). The norm's rows start with length √d,
    which on backbones with small embeddings drowns the words that a prompt starts from.
    `preset: paper` has the paper's length and residual layer, at training.learning_rate itself.
    """

    presets: ClassVar[Presets] = {"paper": {"length": 10, "rate": 1.0, "hidden": 800}}

    length: PositiveInt = 10
    rate: PositiveFloat = 30.0
    hidden: PositiveInt | None = None


class ProgPrompt(Method):
    """[P_k; …; P_1; x], P_k learned on task k, older prompts frozen (arXiv 2301.12314).

    A task is answered with its own and all earlier prompts, so its name has to be given. The
    sequence grows by a prompt a task.
    """

    Config = ProgPromptConfig
    traits = Traits(
        idea="a soft prompt per task, put before those of all earlier tasks",
        stores="one soft prompt",
        needs_task_id=True,
        forgets=False,
        lowers_disk="method.length, or method.hidden",
        lowers_ram="method.length, or method.hidden",
    )

    def __init__(self, backbone: Backbone, config: ProgPromptConfig) -> None:
        self.backbone = backbone
        self.options = config
        self.pool = PromptPool(backbone, config.length, concatenated=True)
        self._residual: nn.Module | None = None

    def phases(self, task: Task, context: TaskContext) -> Iterator[Phase]:
        """One phase on a fresh prompt."""
        self.pool.grow(task.name, context.seed)
        groups = [ParamGroup("prompt", self.pool.parameters(), self.options.rate)]
        if self.options.hidden:
            self._residual = _residual(self.backbone, self.options.hidden)
            self.backbone.model.add_module("retain_residual", self._residual)
            residual = list(self._residual.parameters())
            groups.append(ParamGroup("residual", residual, self.options.rate))
        rows = self.encoded(task)
        yield Phase("learn", rows, groups, self.loss)

    def finish(self, task: Task, context: TaskContext) -> None:
        """Keeps the prompt as it came out of the residual layer, which then goes."""
        if self._residual is not None:
            with torch.no_grad():
                (prompt,) = self.pool.parameters()
                prompt.add_(self._residual(prompt))
            self._residual = None
            delattr(self.backbone.model, "retain_residual")

    def footprint(self, task: Task, batch_size: int) -> Footprint:
        """The task's prompt, and the residual layer while it learns."""
        prompt, hidden = self.pool.block_size(), self.options.hidden or 0
        residual = hidden and hidden * (2 * self.backbone.width + 1) + 3 * self.backbone.width
        return super().footprint(task, batch_size) + trainable(prompt + residual, prompt)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy on the task, read behind all prompts so far."""
        self._put(batch, len(self.pool.blocks))
        return {"task": self.backbone.answer_loss(batch)}

    def _put(self, batch: Batch, count: int) -> None:
        """Puts the first `count` prompts, the newest of them first, and hides the places before.

        An encoder may count positions through what is hidden, so there they are cut off.
        """
        prompts = self.pool.prompts.every()  # (T, n, d)
        if self._residual is not None:
            prompts = torch.cat([prompts[:-1], prompts[-1:] + self._residual(prompts[-1:])])
        self.pool.embedding.rows = prompts.flip(0).flatten(0, 1)[None]
        hidden = self.pool.length * (len(prompts) - count)
        if self.backbone.is_encoder_decoder:
            there = int((batch["input_ids"] < 0).sum(1).max())  # all, or what an earlier call left
            for key in PROMPT_KEYS:
                batch[key] = batch[key][:, there - self.pool.length * count :]
            return
        place = -1 - batch["input_ids"]
        mask = batch["attention_mask"]
        batch["attention_mask"] = torch.where(place >= 0, (place >= hidden).to(mask), mask)

    def route(self, batch: Batch, task: str | None = None) -> None:
        """Puts the named task's prompt and the earlier ones before each prompt of the batch."""
        self._put(batch, block_index(task, self.pool.blocks, "progprompt") + 1)

    def save(self, context: TaskContext) -> None:
        """Writes the task's prompt."""
        self.pool.save_block(context.folder, self.backbone.name)

    def load(self, context: TaskContext) -> None:
        """Adds the task's prompt."""
        self.pool.load_block(context.folder, context.name)


def _residual(backbone: Backbone, hidden: int) -> nn.Module:
    """The layer that a learning prompt is added to, (…, d) → (…, d)."""
    d = backbone.width
    layers = nn.Sequential(nn.Linear(d, hidden), nn.ReLU(), nn.Linear(hidden, d), nn.LayerNorm(d))
    return layers.to(backbone.device)
