"""The trainable weights of a sequential method: the full backbone, one LoRA or one prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from retain.backbone import Backbone
from retain.backbone.precision import refuse_full_fine_tuning
from retain.backbone.quantization import is_quantized
from retain.layers.lora_pool import ADAPTER, LoraPool
from retain.layers.soft_prompt import PromptPool
from retain.system.files import read_weights, write_tensors

MODEL = "model.safetensors"
"""File of the full weights in the newest task's folder."""


class Weights(Protocol):
    """Interface of weights that are trained on every task in turn."""

    def begin(self, seed: int) -> None:
        """Prepares the weights for the next task; `seed` fixes the initialisation."""

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Returns the trainable parameters by name, after `begin`."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of `named_parameters`, also before `begin`."""

    def size(self) -> int:
        """Returns the size of the weights in bytes, also before `begin`."""

    def use(self, batch_size: int) -> None:
        """Switches the weights on for a batch of this size."""

    def save(self, folder: Path) -> None:
        """Writes the weights into a task's folder and freezes them."""

    def saved(self, folder: Path) -> bool:
        """Tells whether a task's folder holds weights."""

    def load(self, folder: Path) -> None:
        """Restores the weights from a task's folder."""


class FullWeights:
    """All parameters of the backbone. Only the newest task's folder keeps them.

    Raises:
        RetainError: when the backbone is in half precision, where updates at usual learning rates
            round to zero, or in 4 or 8 bits.
    """

    def __init__(self, backbone: Backbone) -> None:
        dtype = str(backbone.model.dtype).removeprefix("torch.")
        refuse_full_fine_tuning(dtype, is_quantized(backbone.model))
        self._model = backbone.model
        self._named = dict(backbone.model.named_parameters())

    def begin(self, seed: int) -> None:
        """Does nothing: the parameters exist already."""

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Returns the backbone's parameters by name; tied ones once.

        They are others while a phase is trained under `training.shard: full`.
        """
        return dict(self._model.named_parameters())

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of all parameters."""
        return {name: tuple(p.shape) for name, p in self._named.items()}

    def size(self) -> int:
        """Returns the size of all parameters in bytes."""
        return sum(p.numel() * p.element_size() for p in self._named.values())

    def use(self, batch_size: int) -> None:
        """Does nothing: the backbone's parameters are always in use."""

    def save(self, folder: Path) -> None:
        """Writes `model.safetensors`, named as in transformers."""
        write_tensors(folder / MODEL, self._named)

    def saved(self, folder: Path) -> bool:
        """Tells whether a task's folder holds the weights; only the newest does."""
        return (folder / MODEL).exists()

    def load(self, folder: Path) -> None:
        """Reads `model.safetensors`."""
        tensors = read_weights(folder / MODEL, self.shapes())
        with torch.no_grad():
            for name, parameter in self._named.items():
                parameter.copy_(tensors[name])


class PoolWeights:
    """One block, a LoRA (Hu et al., arXiv 2106.09685) or a soft prompt (Lester et al., 2104.08691).

    Every task's folder keeps it.
    """

    def __init__(self, backbone: Backbone, pool: LoraPool | PromptPool) -> None:
        self._name = backbone.name
        self.pool = pool

    def begin(self, seed: int) -> None:
        """Creates the block for the first task; later makes it trainable again."""
        if self.pool.blocks:
            self.pool.thaw()
        else:
            self.pool.grow("shared", seed)

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Returns the block's parameters by name."""
        return self.pool.named_parameters()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of the block's tensors."""
        return {**self.pool.shapes()}

    def size(self) -> int:
        """Returns the size of the block in bytes, as float32."""
        return 4 * self.pool.block_size()

    def use(self, batch_size: int) -> None:
        """Switches the block on for every prompt; before the first task there is none."""
        if self.pool.blocks:
            self.pool.use_block(batch_size, 0)

    def save(self, folder: Path) -> None:
        """Writes the block in peft's layout."""
        self.pool.save_block(folder, self._name)

    def saved(self, folder: Path) -> bool:
        """Tells whether a task's folder holds the block."""
        return (folder / ADAPTER).exists()

    def load(self, folder: Path) -> None:
        """Replaces the block by the one of a later task."""
        self.pool.clear()
        self.pool.load_block(folder, "shared")
