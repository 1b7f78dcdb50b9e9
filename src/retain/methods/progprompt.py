"""Progressive Prompts: a new soft prompt per task, put before those of earlier tasks."""

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
    """Options of the prompts and of the residual layer.

    `length` is a prompt's number of vectors, `rate` its learning rate as a multiple of
    training.learning_rate. With `hidden` a prompt passes through x + LayerNorm(W₂ relu(W₁ x))
    while it is trained; `hidden` is the output width of W₁. In the published code it is 800, and
    off by default as here. The norm's output starts with length √d; on backbones with small
    embeddings this is much larger than the word embeddings that a prompt starts from.
    `preset: paper` has the paper's length and residual layer, with `rate: 1`.
    """

    presets: ClassVar[Presets] = {"paper": {"length": 10, "rate": 1.0, "hidden": 800}}

    length: PositiveInt = 10
    rate: PositiveFloat = 30.0
    hidden: PositiveInt | None = None


class ProgPrompt(Method):
    """[P_k; …; P_1; x], where P_k is trained on task k and older prompts are frozen.

    Razdaibiedina et al., arXiv 2301.12314. Task k is answered with its prompt and all earlier
    ones, so the task's name must be given. The input grows by one prompt per task.
    """

    Config = ProgPromptConfig
    traits = Traits(
        idea="a soft prompt per task, put before those of all earlier tasks",
        stores="one soft prompt",
        needs_task_id=True,
        forgets=False,
        lowers_disk="lower method.length, or method.hidden",
        lowers_ram="lower method.length, or method.hidden",
    )

    def __init__(self, backbone: Backbone, config: ProgPromptConfig) -> None:
        self.backbone = backbone
        self.options = config
        self.pool = PromptPool(backbone, config.length, concatenated=True)
        self._residual: nn.Module | None = None  # while a prompt is trained

    def phases(self, task: Task, context: TaskContext) -> Iterator[Phase]:
        """Yields one phase that trains a new prompt."""
        self.pool.grow(task.name, context.seed)
        groups = [ParamGroup("prompt", self.pool.parameters(), self.options.rate)]
        if self.options.hidden:
            self._residual = _residual(self.backbone, self.options.hidden)
            self.backbone.model.add_module("retain_residual", self._residual)
            residual = list(self._residual.parameters())
            groups.append(ParamGroup("residual", residual, self.options.rate))
        yield Phase("learn", self.encoded(task), groups, self.loss)

    def finish(self, task: Task, context: TaskContext) -> None:
        """Replaces the prompt by the residual layer's output and removes the layer."""
        if self._residual is not None:
            with torch.no_grad():
                (prompt,) = self.pool.parameters()
                prompt.add_(self._residual(prompt))
            self._residual = None
            delattr(self.backbone.model, "retain_residual")

    def footprint(self, task: Task, batch_size: int) -> Footprint:
        """Adds the task's prompt to the estimate, and the residual layer while it is trained."""
        prompt, hidden = self.pool.block_size(), self.options.hidden or 0
        residual = hidden and hidden * (2 * self.backbone.width + 1) + 3 * self.backbone.width
        return super().footprint(task, batch_size) + trainable(prompt + residual, prompt)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the cross-entropy, with all prompts before the input."""
        self._prepend(batch, len(self.pool.blocks))
        return {"task": self.backbone.answer_loss(batch)}

    def _prepend(self, batch: Batch, count: int) -> None:
        """Puts the first `count` prompts before each input, the newest of them first.

        The batch has positions for all prompts. Those of newer prompts are masked, or cut off for
        an encoder, which may count masked positions.
        """
        prompts = self.pool.prompts.every()  # (T, n, d)
        if self._residual is not None:
            prompts = torch.cat([prompts[:-1], prompts[-1:] + self._residual(prompts[-1:])])
        self.pool.embedding.rows = prompts.flip(0).flatten(0, 1)[None]
        hidden = self.pool.length * (len(prompts) - count)
        if self.backbone.is_encoder_decoder:
            # All virtual positions, or those that an earlier call has left.
            virtual = int((batch["input_ids"] < 0).sum(1).max())
            for key in PROMPT_KEYS:
                batch[key] = batch[key][:, virtual - self.pool.length * count :]
            return
        position = -1 - batch["input_ids"]  # of a virtual token, from 0; negative for real ones
        mask = batch["attention_mask"]  # (B, S)
        batch["attention_mask"] = torch.where(position >= 0, (position >= hidden).to(mask), mask)

    def route(self, batch: Batch, task: str | None = None) -> None:
        """Puts the named task's prompt and the earlier ones before each input."""
        self._prepend(batch, block_index(task, self.pool.blocks, "progprompt") + 1)

    def save(self, context: TaskContext) -> None:
        """Writes the newest prompt."""
        self.pool.save_block(context.folder, self.backbone.name)

    def load(self, context: TaskContext) -> None:
        """Loads the task's prompt into the pool."""
        self.pool.load_block(context.folder, context.name)


def _residual(backbone: Backbone, hidden: int) -> nn.Module:
    """Builds the residual branch of a prompt that is being trained, (…, d) → (…, d)."""
    d = backbone.width
    layers = nn.Sequential(nn.Linear(d, hidden), nn.ReLU(), nn.Linear(hidden, d), nn.LayerNorm(d))
    return layers.to(backbone.device)
