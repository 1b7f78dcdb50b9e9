"""AM-LoRA: one LoRA per task, mixed by a learned attention over the blocks' outputs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from retain.backbone import Backbone, Batch
from retain.backbone.backbone import IGNORED
from retain.errors import RetainError
from retain.layers.attentive_linear import (
    Activation,
    Attending,
    AttentiveLinear,
    Gate,
    entropy,
)
from retain.layers.pooled_linear import LoraPool
from retain.methods.amlora.diagnostics import GATES, amlora_diagnostics
from retain.methods.base import (
    Footprint,
    Method,
    Options,
    ParamGroup,
    Phase,
    Presets,
    TaskContext,
    Traits,
    trainable,
)
from retain.methods.shared.lora import LoraMethodConfig
from retain.runs.directory import RunDirectory
from retain.runs.sections import Section
from retain.system.files import read_weights, write_json, write_tensors
from retain.tasks import Task

SELECTOR = "selector.safetensors"


class SelectorConfig(Options):
    """Shape and training of the selector; docs/methods.md argues the defaults.

    `hidden` adds a second layer; `granularity` gives each token its own gates, or all tokens those
    of the prompt; `train` lets all blocks' selectors learn on, or the new one only; `rate` is times
    training.learning_rate.
    """

    activation: Activation = "none"
    hidden: PositiveInt | None = None
    gate: Gate = "sigmoid"
    granularity: Literal["token", "instance"] = "token"
    train: Literal["all", "new"] = "new"
    rate: PositiveFloat = 1.0


class SparsityConfig(Options):
    """The sparsity term and its weight λ.

    `l1` of the gates but the zero block's, 1 − g_0 under softmax (the L1 of a whole softmax is the
    constant 1); `entropy` of the gates, made to sum to 1.
    """

    penalty: Literal["entropy", "l1"] = "l1"
    weight: NonNegativeFloat = 0.01


class AmLoraConfig(LoraMethodConfig):
    """AM-LoRA's options.

    The paper scores a block by a dense layer and a nonlinearity, takes the softmax, and keeps it
    sparse by an L1 norm. `preset: paper` has SiLU, since the nonlinearity is not named, and the
    entropy, since the L1 norm of a whole softmax is the constant 1.
    """

    presets: ClassVar[Presets] = {
        "paper": {
            "selector": {"gate": "softmax", "activation": "silu"},
            "sparsity": {"penalty": "entropy", "weight": 0.01},
        },
    }

    selector: SelectorConfig = SelectorConfig()
    sparsity: SparsityConfig = SparsityConfig()


class AmLora(Method):
    """W x + Σ_i g_i(x) (α/r) B_i A_i x, g from a selector in each layer (arXiv 2409.19611)."""

    Config = AmLoraConfig
    traits = Traits(
        idea="an attention in every layer mixes the outputs of one LoRA per task",
        stores="one LoRA, and the selectors that were trained",
        lowers_disk="method.rank, or method.selector.hidden",
        lowers_ram="method.rank, or method.selector.hidden",
    )

    def __init__(self, backbone: Backbone, config: AmLoraConfig) -> None:
        self.backbone = backbone
        self.options = config
        selector = config.selector
        self.attending = Attending(
            activation=selector.activation,
            gate=selector.gate,
            hidden=selector.hidden,
            train_all=selector.train == "all",
        )
        self.pool = LoraPool(
            backbone.model,
            config.target_modules,
            config.rank,
            config.alpha,
            mixture=self.attending,
            make_layer=AttentiveLinear,
            dropout=config.dropout,
        )
        self.layers: dict[str, AttentiveLinear] = {
            name: layer
            for name, layer in self.pool.layers.items()
            if isinstance(layer, AttentiveLinear)
        }
        self._readers = set(self.layers.values())  # those that read prompts, and nothing else
        self._read = torch.zeros(0)  # 1 where the latest prompts have a token, (B, S)
        if backbone.is_encoder_decoder:
            self._find_decoders()
            self._readers &= set(backbone.model.get_encoder().modules())
            if not self._readers:
                raise RetainError(
                    "method.target_modules: AM-LoRA shows its attention on prompts, so some layer "
                    "of the encoder has to be among them; add one"
                )

    def _find_decoders(self) -> None:
        """By a forward on three tokens of a prompt and two of an answer."""

        def look(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            assert isinstance(layer, AttentiveLinear)
            layer.reads_prompt = inputs[0].shape[1] == 3

        hooks = [layer.register_forward_pre_hook(look) for layer in self.layers.values()]
        ids = torch.ones(1, 3, dtype=torch.long, device=self.backbone.device)
        with torch.no_grad():
            self.backbone.model(input_ids=ids, decoder_input_ids=ids[:, :2], use_cache=False)
        for hook in hooks:
            hook.remove()

    # -- learning

    def phases(self, task: Task, context: TaskContext) -> Iterator[Phase]:
        """One phase: the new block and the selectors."""
        self.pool.grow(task.name, context.seed)
        generator = context.generator()
        selectors: list[nn.Parameter] = []
        for layer in self.layers.values():
            layer.grow_selector(generator)
            selectors += layer.selector_parameters().values()
        yield Phase(
            "learn",
            self.encoded(task),
            [
                ParamGroup("block", self.pool.parameters()),
                ParamGroup("selector", selectors, self.options.selector.rate),
            ],
            self.loss,
            units={"sparsity": "rows"},
        )

    def footprint(self, task: Task, batch_size: int) -> Footprint:
        """The task's block, and what learns of the selectors."""
        size, blocks = self.pool.block_size(), len(self.pool.blocks) + 1
        for layer in self.layers.values():
            size += sum(map(math.prod, layer.selector_shapes(blocks).values()))
        return super().footprint(task, batch_size) + trainable(size, size)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy on the task, and the sparsity term."""
        self._attend(batch)
        parts = {"task": self.backbone.answer_loss(batch)}
        if self.options.sparsity.weight:
            parts["sparsity"] = self.options.sparsity.weight * self._penalty(batch)
        self.attending.gates = {}
        self.attending.collects = False  # not again when checkpointing comes by during backward
        return parts

    def _attend(self, batch: Batch) -> None:
        """Lets the layers attend in the coming forward."""
        self.attending.set(None)
        self.attending.gates = {}
        self.attending.collects = True
        self.attending.on = bool(self.pool.blocks)
        by_instance = self.options.selector.granularity == "instance"
        self._read = self._prompt(batch)
        self.attending.prompt = self._read if by_instance else None

    def _prompt(self, batch: Batch) -> Tensor:
        """1.0 where a batch has a token of a prompt, (B, S)."""
        prompt = batch["attention_mask"]
        if "labels" in batch and not self.backbone.is_encoder_decoder:
            prompt = prompt * (batch["labels"] == IGNORED)
        return prompt.float()

    def _penalty(self, batch: Batch) -> Tensor:
        """The sparsity term: mean over a sample's tokens that are not padding, samples, layers."""
        terms = []
        for layer, gates in self.attending.gates.items():
            by_entropy = self.options.sparsity.penalty == "entropy"
            each = entropy(gates) if by_entropy else gates[..., 1:].sum(-1)
            terms.append(self._mean(each, layer, batch))
        return torch.stack(terms).mean()

    def _mean(self, each: Tensor, layer: AttentiveLinear, batch: Batch) -> Tensor:
        """Of values (B, S or 1): over the tokens of a sample that the layer reads, then samples."""
        if each.shape[1] == 1:
            return each.mean()
        real = batch["attention_mask"] if layer.reads_prompt else batch["labels"] != IGNORED
        return ((each * real).sum(1) / real.sum(1)).mean()

    def finish(self, task: Task, context: TaskContext) -> None:
        """Writes the gates of each layer on held-out prompts, for `retain inspect`."""
        rows = [self.backbone.encode(example, with_answer=False) for example in task.dev]
        shares = self.options.selector.gate != "sigmoid"
        found, effective = [], []
        for row in rows:
            batch = self.backbone.collate([row])
            self.route(batch)
            with torch.no_grad():
                self.backbone.read(batch)
            found.append(self.prompt_gates()[0])  # (layers, T + 1)
            for gates in self.attending.gates.values():
                blocks = entropy(gates).exp() if shares else gates.sum(-1)
                effective.append(blocks.mean())
        names = {layer: name for name, layer in self.layers.items()}
        values = {
            "layers": [names[layer] for layer in self.attending.gates],
            "gates": torch.stack(found).mean(0).tolist(),
            "effective": float(torch.stack(effective).mean()),
        }
        write_json(context.folder / GATES, values)

    # -- inference

    def route(self, batch: Batch, task: str | None = None) -> None:
        """Lets the layers attend in the coming forward or generation."""
        self._attend(batch)

    def routing(self) -> Tensor | None:
        """The prompts' mean gates over layers and tokens, (B, T), after their forward.

        What is missing to 1 went to the zero block; with `gate: sigmoid` gates have no fixed sum.
        """
        return self.prompt_gates().mean(1)[:, 1:] if self.pool.blocks else None

    def prompt_gates(self) -> Tensor:
        """Mean gates of each prompt in each layer of the decoder-only model or of the encoder.

        Returns:
            (B, layers, T + 1), the zero block first.
        """
        real = self._read[:, :, None]
        found = [
            (gates * real).sum(1) / real.sum(1) if gates.shape[1] > 1 else gates[:, 0]
            for layer, gates in self.attending.gates.items()
            if layer in self._readers
        ]
        return torch.stack(found, 1)

    @classmethod
    def diagnostics(cls, run: RunDirectory, task: str | None) -> list[Section]:
        """The gates over all layers, and of one task by layer."""
        return amlora_diagnostics(run, task)

    # -- disk

    @property
    def exported_pool(self) -> LoraPool:
        """The blocks, without the selectors that mix them."""
        return self.pool

    def save(self, context: TaskContext) -> None:
        """Writes the block, and what learned of the selectors; older folders have the rest."""
        tensors = {
            f"{name}.{key}": parameter
            for name, layer in self.layers.items()
            for key, parameter in layer.selector_parameters().items()
        }
        write_tensors(context.folder / SELECTOR, tensors)
        self.pool.save_block(context.folder, self.backbone.name)
        for layer in self.layers.values():
            layer.freeze_selector()

    def load(self, context: TaskContext) -> None:
        """Adds the task's block and selectors; where all learn on, these are all blocks'."""
        blocks = len(self.pool.blocks) + 1
        shapes = {
            f"{name}.{key}": shape
            for name, layer in self.layers.items()
            for key, shape in layer.selector_shapes(blocks).items()
        }
        tensors = read_weights(context.folder / SELECTOR, shapes)
        self.pool.load_block(context.folder, context.name)
        for name, layer in self.layers.items():
            own = {key: tensors[f"{name}.{key}"] for key in layer.selector_shapes(blocks)}
            layer.load_selector(own)
