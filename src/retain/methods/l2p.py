"""L2P: learning to prompt. Each input selects some prompts from a pool of fixed size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

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
"""File of the prompts and keys in a task's folder."""


class L2pConfig(MethodConfig):
    """Size of the pool, selection, and training of prompts and keys.

    The pool has `pool_size` prompts of `length` vectors; `picked` of them are put before an input.
    `weight` is λ of the key loss. `keys` says where keys start: `random` draws all of them once, as
    published; `mean_query` gives each new task `picked` prompts that no task had before, while
    there are any, with the task's mean query as their key. With `batchwise` all inputs of a
    micro-batch get the prompts that most of them would pick, as in the published code, which
    answers so too; here an answer never depends on the other inputs of its batch. `rate` is the
    learning rate of prompts and keys, as a multiple of training.learning_rate. `preset: paper` has
    the published options, chosen for a vision transformer, with `rate: 1`.
    """

    presets: ClassVar[Presets] = {
        "paper": {
            "pool_size": 10,
            "length": 5,
            "picked": 5,
            "weight": 0.5,
            "keys": "random",
            "batchwise": True,
            "rate": 1.0,
        },
    }

    pool_size: PositiveInt = 10
    length: PositiveInt = 5
    picked: PositiveInt = 5
    weight: NonNegativeFloat = 0.5
    keys: Literal["random", "mean_query"] = "random"
    batchwise: bool = False
    rate: PositiveFloat = 30.0

    @model_validator(mode="after")
    def _picked_within_pool(self) -> L2pConfig:
        if self.picked > self.pool_size:
            raise ValueError(
                f"picked ({self.picked}) is more than pool_size ({self.pool_size}); lower it"
            )
        return self


class L2p(Method):
    """[P_s1; …; P_sN; x], where s1 … sN are the N keys nearest to q(x) (arXiv 2112.08654).

    P_i are prompts with keys k_i. The query q(x) is the frozen backbone's last hidden state, mean
    over the tokens of the user's text. Loss: cross-entropy + λ Σ_{i ≤ N} (1 − cos(q(x), k_si)),
    eq. 5. All tasks train the same prompts and keys. The paper's option to prefer rarely used
    prompts in training is left out.
    """

    Config = L2pConfig
    traits = Traits(
        idea="a fixed pool of small prompts, of which each input picks those with the nearest keys",
        stores="the pool as it was after the task",
        lowers_disk="lower method.pool_size, or method.length",
        lowers_ram="lower method.pool_size, or method.length",
    )

    def __init__(self, backbone: Backbone, config: L2pConfig) -> None:
        self.backbone = backbone
        self.options = config
        self.embedding = prompted_embedding(backbone)
        size, width, device = config.pool_size, backbone.width, backbone.device  # M, d
        self.prompts = nn.Parameter(torch.zeros(size, config.length, width, device=device))
        self.keys = nn.Parameter(torch.zeros(size, width, device=device))
        pool = nn.ParameterDict({"prompt": self.prompts, "key": self.keys})
        backbone.model.add_module("retain_prompts", pool)
        backbone.virtual_tokens = config.picked * config.length

    def phases(self, task: Task, context: TaskContext) -> Iterator[Phase]:
        """Yields one phase on prompts and keys; before the first task they are initialised."""
        rows = self.encoded(task)
        if context.index == 0:
            self._initialise(context)
        if self.options.keys == "mean_query":
            self._place_keys(task, context)
        pool = ParamGroup("pool", [self.prompts, self.keys], self.options.rate)
        yield Phase("learn", rows, [pool], self.loss, units={"keys": "rows"})

    def _place_keys(self, task: Task, context: TaskContext) -> None:
        """Sets the keys of the next `picked` prompts of the pool to the task's mean query."""
        first = context.index * self.options.picked
        if first >= self.options.pool_size:
            return
        total = torch.zeros_like(self.keys[0])
        for example in task.train:
            batch = self.backbone.collate([self.backbone.encode(example, with_answer=False)])
            total += self._query(batch)[0]
        with torch.no_grad():
            self.keys[first : first + self.options.picked] = total / len(task.train)

    def _initialise(self, context: TaskContext) -> None:
        """Sets the prompts (M, n, d) to random word embeddings, the keys (M, d) to noise."""
        size, length = self.options.pool_size, self.options.length
        words = self.embedding.words(size * length, context.seed).view(size, length, -1)
        keys = torch.empty(self.keys.shape).uniform_(-1, 1, generator=context.generator())
        with torch.no_grad():
            self.prompts.copy_(words)
            self.keys.copy_(keys)

    def footprint(self, task: Task, batch_size: int) -> Footprint:
        """Adds the pool, which every task's folder keeps."""
        size = self.prompts.numel() + self.keys.numel()
        return super().footprint(task, batch_size) + trainable(size, size)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the cross-entropy, and the distance to the selected keys."""
        distance = self._select(batch, self.options.batchwise)
        return {"task": self.backbone.answer_loss(batch), "keys": self.options.weight * distance}

    def _select(self, batch: Batch, batchwise: bool = False) -> Tensor:
        """Puts the nearest prompts before each input; returns their keys' distance, a scalar.

        With `batchwise` every input gets those that are nearest to most inputs of the batch; of
        prompts with as many, the first. The distance is summed over an input's prompts and averaged
        over inputs.
        """
        # In full precision, so that training and inference select the same prompts.
        with torch.autocast(self.backbone.device.type, enabled=False):
            query = self._query(batch)  # (B, d)
            cosine = F.normalize(query, dim=1) @ F.normalize(self.keys, dim=1).T  # (B, M)
        nearest, index = cosine.topk(self.options.picked, dim=1)  # (B, N)
        if batchwise:
            counts = index.flatten().bincount(minlength=len(self.keys))  # (M,)
            most = counts.argsort(descending=True, stable=True)[: self.options.picked]
            index = most.expand(len(index), -1)
            nearest = cosine.gather(1, index)
        self.embedding.rows = self.prompts[index].flatten(1, 2)  # (B, N·n, d)
        return (1 - nearest).sum(1).mean()

    def _query(self, batch: Batch) -> Tensor:
        """Computes q(x), (B, d), without dropout: in training the same as at inference."""
        model = self.backbone.model
        encoder_decoder = self.backbone.is_encoder_decoder
        trunk = model.get_encoder() if encoder_decoder else model.base_model
        options = {} if encoder_decoder else {"use_cache": False}
        mask = batch["route_mask"]
        training = model.training
        model.eval()
        with torch.no_grad():
            output = trunk(input_ids=batch["route_ids"], attention_mask=mask, **options)
        model.train(training)
        hidden = output.last_hidden_state.float()  # (B, S, d)
        return (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)

    def route(self, batch: Batch, task: str | None = None) -> None:
        """Puts the nearest prompts before each input."""
        self._select(batch)

    def save(self, context: TaskContext) -> None:
        """Writes the current prompts and keys."""
        write_tensors(context.folder / PROMPTS, {"prompts": self.prompts, "keys": self.keys})

    def load(self, context: TaskContext) -> None:
        """Restores the prompts and keys as they were after the task."""
        pool = {"prompts": self.prompts, "keys": self.keys}
        path = context.folder / PROMPTS
        tensors = read_weights(path, {name: p.shape for name, p in pool.items()})
        with torch.no_grad():
            for name, parameter in pool.items():
                parameter.copy_(tensors[name])
