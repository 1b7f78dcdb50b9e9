"""L2P: learning to prompt. A fixed pool of small prompts, from which each input picks some."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from retain.backbone import Backbone, Batch
from retain.layers.soft_prompt import prompted_embedding
from retain.methods.base import (
    Footprint,
    Method,
    MethodConfig,
    ParamGroup,
    Phase,
    Presets,
    TaskContext,
    Traits,
    trainable,
)
from retain.system.files import read_weights, write_tensors
from retain.tasks import Task

PROMPTS = "prompts.safetensors"


class L2pConfig(MethodConfig):
    """M prompts of `length` rows, of which `picked` stand before an input; λ of the keys' term.

    `rate`, of prompts and keys, is times training.learning_rate. `preset: paper` has L2P's own
    options, which are those of a vision transformer, at training.learning_rate itself.
    """

    presets: ClassVar[Presets] = {
        "paper": {"pool_size": 10, "length": 5, "picked": 5, "weight": 0.5, "rate": 1.0},
    }

    pool_size: PositiveInt = 10
    length: PositiveInt = 5
    picked: PositiveInt = 5
    weight: NonNegativeFloat = 0.5
    rate: PositiveFloat = 30.0

    @model_validator(mode="after")
    def _enough(self) -> L2pConfig:
        if self.picked > self.pool_size:
            raise ValueError(
                f"picked ({self.picked}) is more than pool_size ({self.pool_size}); lower it"
            )
        return self


class L2p(Method):
    """[P_s1; …; P_sN; x], s = the N keys nearest to the input's feature q(x) (arXiv 2112.08654).

    Loss: cross-entropy + λ Σ_{i ≤ N} (1 − cos(q(x), k_si)), eq. 5. q(x) is the frozen backbone's
    last hidden state, mean over the user's words. Prompts and keys are shared by all tasks and
    learn on. The paper's option of preferring rarely used prompts in training is left out.
    """

    Config = L2pConfig
    traits = Traits(
        idea="a fixed pool of small prompts, of which each input picks those with the nearest keys",
        stores="the pool as it was after the task",
        lowers_disk="method.pool_size, or method.length",
        lowers_ram="method.pool_size, or method.length",
    )

    def __init__(self, backbone: Backbone, config: L2pConfig) -> None:
        self.backbone = backbone
        self.options = config
        self.embedding = prompted_embedding(backbone)
        size, width, device = config.pool_size, backbone.width, backbone.device
        self.prompts = nn.Parameter(torch.zeros(size, config.length, width, device=device))
        self.keys = nn.Parameter(torch.zeros(size, width, device=device))
        pool = nn.ParameterDict({"prompt": self.prompts, "key": self.keys})
        backbone.model.add_module("retain_prompts", pool)
        backbone.virtual_tokens = config.picked * config.length

    def phases(self, task: Task, context: TaskContext) -> Iterator[Phase]:
        """One phase on the pool and its keys, which the stream's first task draws."""
        if context.index == 0:
            self._draw(context)
        pool = ParamGroup("pool", [self.prompts, self.keys], self.options.rate)
        rows = self.encoded(task)
        yield Phase("learn", rows, [pool], self.loss, units={"keys": "rows"})

    def _draw(self, context: TaskContext) -> None:
        """Sets the prompts (M, n, d) to random words and the keys (M, d) to uniform noise."""
        size, length = self.options.pool_size, self.options.length
        words = self.embedding.words(size * length, context.seed).view(size, length, -1)
        keys = torch.empty(self.keys.shape).uniform_(-1, 1, generator=context.generator())
        with torch.no_grad():
            self.prompts.copy_(words)
            self.keys.copy_(keys)

    def footprint(self, task: Task, batch_size: int) -> Footprint:
        """The pool, which every task's folder keeps."""
        size = self.prompts.numel() + self.keys.numel()
        return super().footprint(task, batch_size) + trainable(size, size)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy on the task, and the distance to the picked keys."""
        distance = self._pick(batch)
        return {"task": self.backbone.answer_loss(batch), "keys": self.options.weight * distance}

    def _pick(self, batch: Batch) -> Tensor:
        """Puts each input's nearest prompts before it; returns their distance, mean over inputs."""
        # In full precision, so that training and inference pick the same.
        with torch.autocast(self.backbone.device.type, enabled=False):
            query = self._query(batch)  # (B, d)
            cosine = F.normalize(query, dim=1) @ F.normalize(self.keys, dim=1).T  # (B, M)
        near, index = cosine.topk(self.options.picked, dim=1)
        self.embedding.rows = self.prompts[index].flatten(1, 2)  # (B, N·n, d)
        return (1 - near).sum(1).mean()

    def _query(self, batch: Batch) -> Tensor:
        """q(x), (B, d): the same in training, where the backbone has dropout, as at inference."""
        model = self.backbone.model
        encoder_decoder = self.backbone.is_encoder_decoder
        trunk = model.get_encoder() if encoder_decoder else model.base_model
        options = {} if encoder_decoder else {"use_cache": False}
        mask = batch["route_mask"]
        training = model.training
        model.eval()
        with torch.no_grad():
            read = trunk(input_ids=batch["route_ids"], attention_mask=mask, **options)
        model.train(training)
        hidden = read.last_hidden_state.float()  # (B, S, d)
        return (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)

    def route(self, batch: Batch, task: str | None = None) -> None:
        """Puts each input's nearest prompts before it."""
        self._pick(batch)

    def save(self, context: TaskContext) -> None:
        """Writes the pool as it is after this task."""
        write_tensors(context.folder / PROMPTS, {"prompts": self.prompts, "keys": self.keys})

    def load(self, context: TaskContext) -> None:
        """Takes over a later task's pool."""
        pool = {"prompts": self.prompts, "keys": self.keys}
        path = context.folder / PROMPTS
        tensors = read_weights(path, {name: p.shape for name, p in pool.items()})
        with torch.no_grad():
            for name, parameter in pool.items():
                parameter.copy_(tensors[name])
