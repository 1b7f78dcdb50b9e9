"""A pool of LoRA blocks over a backbone's linear layers: grown, shared, merged, saved and loaded.

In shapes, B is the batch size, T the number of tasks, n that of frozen blocks, r their rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from peft import LoraConfig, TaskType
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from retain.backbone.probe import short_forward
from retain.errors import RetainError, first_line
from retain.layers.pooled_linear import Mixture, PooledLinear
from retain.layers.targets import positions_first, target_linears
from retain.runs.records import read_record
from retain.system.files import read_weights, write_json, write_tensors

ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
"""Names of a block's files in peft's layout."""


class LoraPool:
    """The LoRA blocks of a model; each block has factors in every adapted layer.

    Args:
        model: the backbone; its target layers are replaced by `PooledLinear`.
        target_modules: endings of layer names, or None for peft's default.
        rank: r of every block.
        alpha: blocks are scaled by alpha / r.
        old_block_gradient: whether frozen blocks pass a gradient to their input x. SAPT's equations
            do, its published code does not. Their weights a_i get a gradient in both cases.
        make_mixture: creates what holds the weights that the layers read, with the arguments of
            `Mixture`.
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
        make_mixture: Callable[..., Mixture] = Mixture,
        make_layer: Callable[..., PooledLinear] = PooledLinear,
        dropout: float = 0.0,
    ) -> None:
        linears, self.endings = target_linears(model, target_modules)
        self.rank, self.alpha, self.dropout = rank, alpha, dropout
        # Products in float16 would overflow, and their gradients round to zero.
        dtype = torch.bfloat16 if model.dtype == torch.bfloat16 else torch.float32
        self.mixture = make_mixture(rank=rank, scale=alpha / rank, dtype=dtype)
        self._model = model
        self.blocks: list[str] = []
        self.sharing: list[int] = []
        self._weights: Tensor | None = None
        self.layers: dict[str, PooledLinear] = {}
        self._encoder_decoder = model.config.is_encoder_decoder
        for name, linear in linears.items():
            layer = make_layer(linear, self.mixture, old_block_gradient, dropout)
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
        """Returns the frozen blocks: per layer `<name>.A` (n·r, d_in), `<name>.B` (d_out, n·r).

        They are float32 tensors of the precision that the blocks are computed in.
        """
        return {
            f"{name}.{letter}": factor.float()
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
