"""A pool of LoRA blocks over a backbone's linear layers, mixed per example.

Every adapted layer computes W x + Σ_i a_i (α/r) B_i A_i x (SAPT, arXiv 2401.08295, equation 6). One
weight vector a per example is shared by all layers. The factors of frozen blocks are stacked, so
that their mixture takes two matrix products for any number of blocks: z = A x in rank space, z
scaled by a, then B z. The trainable block takes two more.

In shapes, B is the batch size, S the sequence length, T the number of blocks, n that of frozen
blocks, r their rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import LoraConfig, TaskType
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from retain.backbone.probe import short_forward
from retain.errors import RetainError, first_line
from retain.layers.targets import positions_first, shape, target_linears
from retain.runs.records import read_record
from retain.system.files import read_weights, write_json, write_tensors

ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
"""Names of a block's files in peft's layout."""

Factors = tuple[Tensor, Tensor, Tensor]
"""Three tensors that a layer derives from its blocks, such as A, B and the weights of a mixture."""


@dataclass(eq=False)
class Mixture:
    """The weights a (B, T) of the next forward, read by every layer of one pool.

    They stay until they are replaced: during all steps of a generation, and during the
    recomputation of gradient checkpointing.

    Attributes:
        weights: a; None switches all blocks off.
        block: index of the block that has the full weight in every example; None for a mixture.
        top_k: maximum number of frozen blocks with a weight per example; None for all.
        cache: tensors that each layer computes once per generation, when no gradient is needed.
    """

    weights: Tensor | None = None
    block: int | None = None
    top_k: int | None = None
    cache: dict[nn.Module, Factors] = field(default_factory=dict)

    def set(self, weights: Tensor | None, block: int | None = None) -> None:
        """Replaces the weights."""
        self.weights, self.block = weights, block
        self.cache.clear()


class PooledLinear(nn.Module):
    """One linear layer with its part of the pool's blocks.

    Attributes:
        A, B: the trainable block, (r, d_in) and (d_out, r), or None.
        dropout: the share of the trainable block's input entries that training sets to zero.
        positions_first: whether the backbone hands this layer (S, B, d_in), as LED does.
    """

    _old_A: Tensor
    _old_B: Tensor

    def __init__(
        self,
        base: nn.Linear,
        rank: int,
        scale: float,
        mixture: Mixture,
        old_block_gradient: bool,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.base = base
        self.rank, self.scale, self.mixture, self.dropout = rank, scale, mixture, dropout
        self.old_block_gradient = old_block_gradient
        self.positions_first = False
        self.d_in, self.d_out = shape(base)
        self.register_buffer("_old_A", None, persistent=False)
        self.register_buffer("_old_B", None, persistent=False)
        self.clear()
        self.train(base.training)  # a new module would train, and drop inputs, in a loaded run too

    @property
    def weight(self) -> Tensor:
        """The base layer's weight; some models read its dtype (T5's `wo`)."""
        weight: Tensor = self.base.weight
        return weight

    @property
    def old_A(self) -> Tensor:
        """A of the frozen blocks, oldest first, (n·r, d_in)."""
        self._stack()
        return self._old_A

    @property
    def old_B(self) -> Tensor:
        """B of the frozen blocks, oldest first, (d_out, n·r)."""
        self._stack()
        return self._old_B

    def _stack(self) -> None:
        """Stacks all pushed blocks at once; one copy per block would cost quadratic time."""
        if self._pushed:
            # The model may have moved to another device since the push.
            As, Bs = (
                [factor.to(self._old_A) for factor in factors]
                for factors in zip(*self._pushed, strict=True)
            )
            self._old_A = torch.cat([self._old_A, *As])
            self._old_B = torch.cat([self._old_B, *Bs], dim=1)
            if self.mixture.top_k is not None:  # so that each selected block is contiguous
                self._old_B = self._old_B.mT.contiguous().mT
            self._pushed.clear()

    def _empty(self, *size: int) -> Tensor:
        return torch.zeros(size, device=self.base.weight.device)

    def clear(self) -> None:
        """Removes all blocks."""
        self._pushed: list[tuple[Tensor, Tensor]] = []
        self._old_A = self._empty(0, self.d_in)
        self._old_B = self._empty(self.d_out, 0)
        self.A: nn.Parameter | None = None
        self.B: nn.Parameter | None = None

    def restart(self, generator: torch.Generator | None = None) -> None:
        """Replaces the trainable block by a fresh one: A as in peft, B zero."""
        A = nn.init.kaiming_uniform_(
            torch.empty(self.rank, self.d_in), a=5**0.5, generator=generator
        )
        self.A = nn.Parameter(A.to(self._old_A))
        self.B = nn.Parameter(self._empty(self.d_out, self.rank))

    def freeze(self) -> None:
        """Moves the trainable block to the frozen ones."""
        if self.A is not None and self.B is not None:
            self.push(self.A.detach(), self.B.detach())
            self.A = self.B = None

    def thaw(self) -> None:
        """Makes the newest frozen block trainable again."""
        if self.A is None:
            split = self.old_A.shape[0] - self.rank
            self.A = nn.Parameter(self.old_A[split:].clone())
            self.B = nn.Parameter(self.old_B[:, split:].clone())
            self._old_A, self._old_B = self.old_A[:split].clone(), self.old_B[:, :split].clone()

    def copy_block(self, block: int) -> None:
        """Sets the trainable block's factors to those of a frozen block."""
        if self.A is None or self.B is None:
            raise RuntimeError("there is no trainable block to copy to")
        span = slice(block * self.rank, (block + 1) * self.rank)
        with torch.no_grad():
            self.A.copy_(self.old_A[span])
            self.B.copy_(self.old_B[:, span])

    def push(self, A: Tensor, B: Tensor) -> None:
        """Adds one frozen block, A (r, d_in) and B (d_out, r)."""
        self._pushed.append((A, B))

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (B, S, d_in) to (B, S, d_out), or (S, B, d_in) to (S, B, d_out)."""
        if self.positions_first and x.dim() == 3:
            return self.adapted(x.transpose(0, 1)).transpose(0, 1).contiguous()
        return self.adapted(x)

    def adapted(self, x: Tensor) -> Tensor:
        """Maps x (B, S, d_in) to (B, S, d_out); B may be a multiple of the weights' (beam search).

        Raises:
            RetainError: if the input is not (batch, sequence, dim).
        """
        y: Tensor = self.base(x)
        weights = self.mixture.weights
        if weights is None:
            return y
        old = self.old_A.shape[0] // self.rank
        blocks = old + (self.A is not None)
        if x.dim() != 3:
            raise RetainError(
                f"method.target_modules: a target layer got input of shape {tuple(x.shape)}, "
                "expected (batch, sequence, dim); expert layers of a mixture of experts are not "
                "supported, remove them"
            )
        if x.shape[0] % weights.shape[0] or weights.shape[1] != blocks:
            raise RuntimeError(
                f"weights of shape {tuple(weights.shape)} do not fit input of shape "
                f"{tuple(x.shape)} and {blocks} blocks; route the batch before the forward"
            )
        block = self.mixture.block
        weights = weights.repeat_interleave(x.shape[0] // weights.shape[0], 0) * self.scale
        if old and (block is None or block < old):
            source = x if self.old_block_gradient else x.detach()
            A, B, gates = self._frozen(weights[:, :old])
            gates = gates.repeat_interleave(self.rank, 1)  # (B, selected blocks · r)
            y = y + _delta(source, A, B, gates).to(y.dtype)
        if self.A is not None and self.B is not None and block in (None, old):
            gates = weights[:, old:].expand(-1, self.rank)  # (B, r)
            y = y + _delta(self._dropped(x), self.A, self.B, gates).to(y.dtype)
        return y

    def _dropped(self, x: Tensor) -> Tensor:
        """Applies dropout to the trainable block's input, in training; any shape."""
        return F.dropout(x, self.dropout, self.training) if self.dropout else x

    def _frozen(self, weights: Tensor) -> Factors:
        """Returns A, B and weights of the frozen blocks to compute, from weights (B, n) of all."""
        block, top_k = self.mixture.block, self.mixture.top_k
        if block is not None:
            span = slice(block * self.rank, (block + 1) * self.rank)
            return self.old_A[span], self.old_B[:, span], weights[:, block : block + 1]
        if top_k is None or top_k >= weights.shape[1]:
            return self.old_A, self.old_B, weights
        if torch.is_grad_enabled():
            return self._largest(weights, top_k)
        selected = self.mixture.cache.get(self)
        if selected is None or len(selected[2]) != len(weights):  # beam search widens the batch
            selected = self.mixture.cache[self] = self._largest(weights, top_k)
        return selected

    def merged(self, weights: Tensor) -> nn.Module:
        """Merges the frozen blocks into the base layer, W + Σ_i a_i (α/r) B_i A_i; returns it.

        Args:
            weights: a, (n,).
        """
        gates = weights.to(self.old_A).repeat_interleave(self.rank) * self.scale
        delta = (self.old_B * gates) @ self.old_A  # (d_out, d_in)
        delta = delta.T if isinstance(self.base, Conv1D) else delta
        with torch.no_grad():
            self.base.weight += delta.to(self.weight)
        return self.base

    def _largest(self, weights: Tensor, count: int) -> Factors:
        """Selects each example's frozen blocks with the largest weights.

        Args:
            weights: weights of the frozen blocks, (B, n).
            count: k, the number of blocks to select.

        Returns:
            A (B, k·r, d_in), B (B, d_out, k·r) and their weights (B, k).
        """
        largest, index = weights.topk(count, dim=1)
        A = self.old_A.unflatten(0, (-1, self.rank))[index].flatten(1, 2)
        B = self.old_B.mT.unflatten(0, (-1, self.rank))[index].flatten(1, 2).mT
        return A, B, largest


def _delta(x: Tensor, A: Tensor, B: Tensor, gates: Tensor) -> Tensor:
    """Computes B (gates ⊙ A x), with k = blocks · r.

    Args:
        x: (B, S, d_in).
        A: (k, d_in), or (B, k, d_in) if each example has its own blocks.
        B: (d_out, k), or (B, d_out, k).
        gates: (B, k).
    """
    z = x.to(A.dtype) @ A.mT  # (B, S, k)
    return (z * gates[:, None].to(z.dtype)) @ B.mT  # (B, S, d_out)


class LoraPool:
    """The LoRA blocks of a model; each block has factors in every adapted layer.

    Args:
        model: the backbone; its target layers are replaced by `PooledLinear`.
        target_modules: endings of layer names, or None for peft's default.
        rank: r of every block.
        alpha: blocks are scaled by alpha / r.
        old_block_gradient: whether frozen blocks pass a gradient to their input x. SAPT's equations
            do, its published code does not. Their weights a_i get a gradient in both cases.
        mixture: holds the weights that the layers read; None creates one.
        make_layer: creates the layers, with the arguments of `PooledLinear`.
        dropout: applied to the trainable block's input in training, as peft's lora_dropout.

    Attributes:
        blocks: the names of the T tasks, in order.
        sharing: the number of each task's block; tasks may share one (`share`).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        target_modules: list[str] | None,
        rank: int,
        alpha: float,
        old_block_gradient: bool = False,
        mixture: Mixture | None = None,
        make_layer: Callable[..., PooledLinear] = PooledLinear,
        dropout: float = 0.0,
    ) -> None:
        linears, self.endings = target_linears(model, target_modules)
        self.rank, self.alpha, self.dropout = rank, alpha, dropout
        self.mixture = mixture or Mixture()
        self._model = model
        self.blocks: list[str] = []
        self.sharing: list[int] = []
        self._weights: Tensor | None = None
        self.layers: dict[str, PooledLinear] = {}
        self._encoder_decoder = model.config.is_encoder_decoder
        for name, linear in linears.items():
            layer = make_layer(
                linear, rank, alpha / rank, self.mixture, old_block_gradient, dropout
            )
            layer.positions_first = positions_first(model, name)
            model.set_submodule(name, layer)
            self.layers[name] = layer
        self._refuse_uncalled()

    def _refuse_uncalled(self) -> None:
        """Raises RetainError if the model does not call its layers in this form, in training."""
        called: set[nn.Module] = set()
        hooks = [
            layer.register_forward_pre_hook(lambda layer, _: called.add(layer))
            for layer in self.layers.values()
        ]
        model = self._model
        gpus = [model.device] if model.device.type == "cuda" else []
        failure = ""
        with torch.no_grad(), torch.random.fork_rng(gpus):
            model.train()
            try:
                short_forward(model)
            except Exception as error:  # an attribute that the class reads, say
                failure = f" ({first_line(error)})"
            finally:
                model.eval()
                for hook in hooks:
                    hook.remove()
        if failure or len(called) < len(self.layers):
            raise RetainError(
                f"method.target_modules: {type(model).__name__} does not call all of its layers "
                f"{', '.join(self.endings)} as others do{failure}; choose others"
            )

    def grow(self, name: str, seed: int) -> None:
        """Freezes the trainable block and adds a fresh one, determined by `seed`."""
        self.freeze()
        self._add(name)
        self.restart(seed)

    def _add(self, name: str) -> None:
        self.blocks.append(name)
        self.sharing.append(max(self.sharing, default=-1) + 1)

    def restart(self, seed: int) -> None:
        """Replaces the trainable block by a fresh one, determined by `seed`.

        All methods start a task from the same block: they pass the same seed.
        """
        generator = torch.Generator().manual_seed(seed)
        for layer in self.layers.values():
            layer.restart(generator)

    def copy_block(self, index: int) -> None:
        """Sets the trainable block's factors to those of task `index`'s frozen block."""
        for layer in self.layers.values():
            layer.copy_block(self.sharing[index])

    def share(self, sharing: Sequence[int], factors: Mapping[str, Tensor]) -> None:
        """Replaces all blocks by others, frozen, which several tasks may share.

        Args:
            sharing: each task's block, from 0.
            factors: all blocks' factors, as `factors` returns them.
        """
        self.use(None)
        self.sharing = list(sharing)
        for name, layer in self.layers.items():
            layer.clear()
            As = factors[f"{name}.A"].split(self.rank)
            Bs = factors[f"{name}.B"].split(self.rank, 1)
            for A, B in zip(As, Bs, strict=True):
                layer.push(A, B)

    def factors(self) -> dict[str, Tensor]:
        """Returns the frozen blocks: per layer `<name>.A` (n·r, d_in), `<name>.B` (d_out, n·r)."""
        return {
            f"{name}.{letter}": factor
            for name, layer in self.layers.items()
            for letter, factor in (("A", layer.old_A), ("B", layer.old_B))
        }

    def freeze(self) -> None:
        """Moves the trainable block to the frozen ones."""
        self.mixture.cache.clear()
        for layer in self.layers.values():
            layer.freeze()

    def thaw(self) -> None:
        """Makes the newest block trainable again."""
        self.mixture.cache.clear()
        for layer in self.layers.values():
            layer.thaw()

    def clear(self) -> None:
        """Removes all blocks."""
        self.blocks.clear()
        self.sharing.clear()
        self.mixture.cache.clear()
        for layer in self.layers.values():
            layer.clear()

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Returns the trainable block's factors, named by layer, such as `….q_proj.A`."""
        return {
            f"{name}.{letter}": factor
            for name, layer in self.layers.items()
            for letter, factor in (("A", layer.A), ("B", layer.B))
            if factor is not None
        }

    def parameters(self) -> list[nn.Parameter]:
        """Returns the trainable block's factors without names."""
        return list(self.named_parameters().values())

    def shapes(self) -> dict[str, tuple[int, int]]:
        """Returns the shapes of a block's factors, named as in `named_parameters`."""
        return {
            f"{name}.{letter}": shape
            for name, layer in self.layers.items()
            for letter, shape in (("A", (self.rank, layer.d_in)), ("B", (layer.d_out, self.rank)))
        }

    def block_size(self) -> int:
        """Returns the number of parameters of one block."""
        return sum(rows * columns for rows, columns in self.shapes().values())

    @property
    def weights(self) -> Tensor | None:
        """The weights (B, T) of the next forward, one per task, or None."""
        return self._weights

    def use(self, weights: Tensor | None) -> None:
        """Sets the weights (B, T) of the next forward; None switches all blocks off."""
        self._weights = weights
        self.mixture.set(None if weights is None else self._by_block(weights))

    def _by_block(self, weights: Tensor) -> Tensor:
        """Sums weights of tasks (·, T) by the blocks that they share, (·, blocks)."""
        blocks = max(self.sharing, default=-1) + 1
        if blocks == len(self.sharing):
            return weights
        index = torch.tensor(self.sharing, device=weights.device)
        return weights.new_zeros(len(weights), blocks).index_add(1, index, weights)

    def use_block(self, batch_size: int, index: int) -> None:
        """Gives task `index`'s block the full weight in every example; others are not computed."""
        device = next(iter(self.layers.values())).weight.device
        one_hot = torch.zeros(batch_size, len(self.blocks), device=device)
        one_hot[:, index] = 1.0
        self._weights = one_hot
        self.mixture.set(self._by_block(one_hot), self.sharing[index])

    def merge(self, weights: Sequence[float]) -> None:
        """Merges the blocks permanently into the backbone's weights and removes the pool's layers.

        Args:
            weights: one per task.
        """
        (by_block,) = self._by_block(torch.tensor([list(weights)]))
        for name, layer in self.layers.items():
            self._model.set_submodule(name, layer.merged(by_block))
        self.layers.clear()

    def save_block(self, folder: Path, base_name: str) -> None:
        """Writes the trainable block in peft's layout, for PeftModel.from_pretrained; freezes it.

        It is stacked as `load_block` stacks it, so it computes the same bits as after a restart.

        Args:
            folder: the task's folder.
            base_name: the backbone's name, which peft's config records.
        """
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=self.endings,
            fan_in_fan_out=any(isinstance(x.base, Conv1D) for x in self.layers.values()),
            task_type=TaskType.SEQ_2_SEQ_LM if self._encoder_decoder else TaskType.CAUSAL_LM,
            base_model_name_or_path=base_name,
            inference_mode=True,
        ).to_dict()
        config["target_modules"] = self.endings  # peft keeps a set, whose order varies
        tensors = {}
        for name, layer in self.layers.items():
            if layer.A is None or layer.B is None:
                raise RuntimeError("there is no trainable block to save")
            tensors[_peft_name(f"{name}.A")] = layer.A
            tensors[_peft_name(f"{name}.B")] = layer.B
        write_tensors(folder / ADAPTER, tensors)
        write_json(folder / ADAPTER_CONFIG, plain(config))
        self.freeze()

    def load_block(self, folder: Path, name: str) -> None:
        """Adds a saved block, frozen.

        Raises:
            RetainError: if the files do not have this pool's layers, rank and alpha.
        """
        path = folder / ADAPTER
        config = read_record(dict, folder / ADAPTER_CONFIG)
        if (config.get("r"), config.get("lora_alpha")) != (self.rank, self.alpha):
            raise RetainError(
                f"{folder / ADAPTER_CONFIG}: rank and alpha are "
                f"{config.get('r')} and {config.get('lora_alpha')}, "
                f"but the run's are {self.rank} and {self.alpha:g}; restore the file from a copy "
                "of the run"
            )
        tensors = read_weights(path, {_peft_name(key): s for key, s in self.shapes().items()})
        self.freeze()
        self._add(name)
        for layer_name, layer in self.layers.items():
            A, B = (tensors[_peft_name(f"{layer_name}.{letter}")] for letter in "AB")
            layer.push(A, B)


def _peft_name(factor: str) -> str:
    """Returns peft's name of a factor such as `model.layers.0.self_attn.q_proj.A`."""
    layer, _, letter = factor.rpartition(".")
    return f"base_model.model.{layer}.lora_{letter}.weight"


def plain(config: dict[str, object]) -> dict[str, object]:
    """Returns a peft config as JSON values, without null fields."""
    return {
        key: sorted(value) if isinstance(value, set) else getattr(value, "value", value)
        for key, value in config.items()
        if value is not None
    }
