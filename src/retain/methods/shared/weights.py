"""What a method with one set of weights trains: the whole backbone, one LoRA or one prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from retain.backbone import Backbone
from retain.errors import RetainError
from retain.layers.pooled_linear import ADAPTER, LoraPool
from retain.layers.soft_prompt import PromptPool
from retain.system.files import read_weights, write_tensors

MODEL = "model.safetensors"


class Weights(Protocol):
    """The weights that learn every task in turn."""

    def begin(self, seed: int) -> None:
        """Makes them ready to learn another task; `seed` fixes what is drawn."""

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """What learns, once `begin` was called."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of `named_parameters`, also before `begin`."""

    def size(self) -> int:
        """Their bytes, also before `begin`."""

    def use(self, batch_size: int) -> None:
        """Switches them on for a batch of so many samples."""

    def save(self, folder: Path) -> None:
        """Writes them, and ends the learning."""

    def saved(self, folder: Path) -> bool:
        """Whether a task's folder has them."""

    def load(self, folder: Path) -> None:
        """Takes over what was saved there."""


class FullWeights:
    """Every parameter of the backbone. Only the newest task's folder keeps them.

    Raises:
        RetainError: when they are in half precision, where the steps of usual rates round to none.
    """

    def __init__(self, backbone: Backbone) -> None:
        if backbone.model.dtype in (torch.bfloat16, torch.float16):
            raise RetainError(
                f"backbone.dtype: a whole model does not learn in {backbone.model.dtype}, where "
                "small steps round to none; set it to float32 (training.bf16: true computes in "
                "bfloat16), or learn a LoRA (method.tune: lora; seqlora instead of seqft)"
            )
        self._model = backbone.model
        self._named = dict(backbone.model.named_parameters())

    def begin(self, seed: int) -> None:
        """Nothing to do: they are always there."""

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """The backbone's own, by name; tied ones once."""
        return self._named

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all parameters."""
        return {name: tuple(p.shape) for name, p in self._named.items()}

    def size(self) -> int:
        """Bytes of all parameters."""
        return sum(p.numel() * p.element_size() for p in self._named.values())

    def use(self, batch_size: int) -> None:
        """Nothing to do: they are always on."""

    def save(self, folder: Path) -> None:
        """Writes `model.safetensors`, named as in transformers."""
        write_tensors(folder / MODEL, self._named)

    def saved(self, folder: Path) -> bool:
        """Whether a task's folder has them; only the newest does."""
        return (folder / MODEL).exists()

    def load(self, folder: Path) -> None:
        """Reads them."""
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
        """Adds the block, or makes it trainable again."""
        if self.pool.blocks:
            self.pool.thaw()
        else:
            self.pool.grow("shared", seed)

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """The block's own."""
        return self.pool.named_parameters()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of a block's tensors."""
        return {**self.pool.shapes()}

    def size(self) -> int:
        """Bytes of the block, float32."""
        return 4 * self.pool.block_size()

    def use(self, batch_size: int) -> None:
        """The one block is always on; before the first task there is none."""
        if self.pool.blocks:
            self.pool.use_block(batch_size, 0)

    def save(self, folder: Path) -> None:
        """Writes it in peft's layout."""
        self.pool.save_block(folder, self._name)

    def saved(self, folder: Path) -> bool:
        """Whether a task's folder has it."""
        return (folder / ADAPTER).exists()

    def load(self, folder: Path) -> None:
        """Replaces it by a later one."""
        self.pool.clear()
        self.pool.load_block(folder, "shared")
