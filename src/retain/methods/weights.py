"""What a method with one set of weights trains: the whole backbone, one LoRA or one prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from retain.backbone import Backbone
from retain.errors import RetainError
from retain.layers.pooled_linear import LoraPool
from retain.layers.soft_prompt import PromptPool
from retain.store import read_tensors, write_tensors

MODEL = "model.safetensors"


class Weights(Protocol):
    """The weights that learn every task in turn."""

    def begin(self) -> None:
        """Makes them ready to learn another task."""

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """What learns, once `begin` was called."""

    def size(self) -> int:
        """Their bytes, also before `begin`."""

    def use(self, batch_size: int) -> None:
        """Switches them on for a batch of so many samples."""

    def save(self, folder: Path) -> None:
        """Writes them, and ends the learning."""

    def load(self, folder: Path) -> None:
        """Takes over what was saved there."""


class FullWeights:
    """Every parameter of the backbone. Only the newest task's folder keeps them."""

    def __init__(self, backbone: Backbone) -> None:
        self._model = backbone.model
        self._named = dict(backbone.model.named_parameters())

    def begin(self) -> None:
        """Nothing to do: they are always there."""

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """The backbone's own, by name; tied ones once."""
        return self._named

    def size(self) -> int:
        """Bytes of all parameters."""
        return sum(p.numel() * p.element_size() for p in self._named.values())

    def use(self, batch_size: int) -> None:
        """Nothing to do: they are always on."""

    def save(self, folder: Path) -> None:
        """Writes `model.safetensors`, named as in transformers."""
        write_tensors(folder / MODEL, self._named)

    def load(self, folder: Path) -> None:
        """Reads them; an older task's folder has none."""
        path = folder / MODEL
        if not path.exists():
            return
        tensors = read_tensors(path)
        if {n: t.shape for n, t in tensors.items()} != {n: p.shape for n, p in self._named.items()}:
            raise RetainError(f"{path}: does not fit this backbone; is it from another one?")
        with torch.no_grad():
            for name, parameter in self._named.items():
                parameter.copy_(tensors[name])


class LoraWeights:
    """One LoRA, W x + (α/r) B A x (Hu et al., arXiv 2106.09685); every task's folder keeps it."""

    def __init__(
        self, backbone: Backbone, target_modules: list[str] | None, rank: int, alpha: float
    ) -> None:
        self._name = backbone.name
        self.pool = LoraPool(backbone.model, target_modules, rank, alpha)

    def begin(self) -> None:
        """Adds the LoRA, or lets it learn on."""
        if self.pool.blocks:
            self.pool.thaw()
        else:
            self.pool.grow("shared")

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """The factors, by layer."""
        return {
            f"{name}.{letter}": parameter
            for name, layer in self.pool.layers.items()
            for letter, parameter in (("A", layer.A), ("B", layer.B))
            if parameter is not None
        }

    def size(self) -> int:
        """Bytes of its factors, float32."""
        return sum(4 * self.pool.rank * (x.d_in + x.d_out) for x in self.pool.layers.values())

    def use(self, batch_size: int) -> None:
        """The one LoRA is always on; before the first task there is none."""
        if self.pool.blocks:
            self.pool.use_block(batch_size, 0)

    def save(self, folder: Path) -> None:
        """Writes it in peft's layout."""
        self.pool.save_block(folder, self._name)

    def load(self, folder: Path) -> None:
        """Replaces it by a later one."""
        self.pool.clear()
        self.pool.load_block(folder, "shared")


class PromptWeights:
    """One soft prompt (Lester et al., arXiv 2104.08691); every task's folder keeps it."""

    def __init__(self, backbone: Backbone, length: int) -> None:
        self._backbone = backbone
        self.pool = PromptPool(backbone, length)

    def begin(self) -> None:
        """Adds the prompt, or lets it learn on."""
        if self.pool.blocks:
            self.pool.thaw()
        else:
            self.pool.grow("shared")

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Its rows."""
        return dict(self.pool.prompts.named_parameters())

    def size(self) -> int:
        """Bytes of its rows, float32."""
        return 4 * self.pool.length * self._backbone.width

    def use(self, batch_size: int) -> None:
        """The one prompt is always on; before the first task there is none."""
        if self.pool.blocks:
            self.pool.use_block(batch_size, 0)

    def save(self, folder: Path) -> None:
        """Writes it in peft's layout."""
        self.pool.save_block(folder, self._backbone.name)

    def load(self, folder: Path) -> None:
        """Replaces it by a later one."""
        self.pool.clear()
        self.pool.load_block(folder, "shared")
