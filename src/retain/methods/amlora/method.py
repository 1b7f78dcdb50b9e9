"""AM-LoRA: one LoRA per task; a trained attention in every layer mixes the blocks' outputs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from retain.backbone import Backbone, Batch
from retain.backbone.losses import IGNORED
from retain.errors import RetainError
from retain.layers.attentive_linear import (
    Activation,
    Attending,
    AttentiveLinear,
    Gate,
    entropy,
)
from retain.layers.lora_pool import LoraPool
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
"""File of the selectors' tensors in a task's folder."""


class SelectorConfig(Options):
    """Shape and training of the selectors; docs/methods.md gives reasons for the defaults.

    `hidden` adds a second layer of this width. `granularity` computes gates per token, or once per
    prompt. `train` trains the selectors of all blocks, or only the new block's. `rate` is the
    selectors' learning rate as a multiple of training.learning_rate.
    """

    activation: Activation = "none"
    hidden: PositiveInt | None = None
    gate: Gate = "sigmoid"
    granularity: Literal["token", "instance"] = "token"
    train: Literal["all", "new"] = "new"
    rate: PositiveFloat = 1.0


class SparsityConfig(Options):
    """The sparsity term and its weight λ.

    `l1` is the sum of all gates but the zero block's. Under softmax this is 1 − g_0; with the zero
    block it would be the constant 1. `entropy` is that of the gates, scaled to a sum of 1.
    """

    penalty: Literal["entropy", "l1"] = "l1"
    weight: NonNegativeFloat = 0.01


class AmLoraConfig(LoraMethodConfig):
    """Options of AM-LoRA.

    The paper scores a block with a dense layer and a nonlinearity, applies a softmax over blocks
    and a zero block, and adds an L1 penalty (arXiv 2409.19611; its equations are not verified).
    `preset: paper` has that softmax. Three things are retain's choice there: SiLU, since which
    nonlinearity it is was not found; the entropy, since the L1 norm of a softmax is the constant 1;
    and its weight. docs/methods/amlora.md lists what the text leaves open.
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
    """W x + Σ_i g_i(x) (α/r) B_i A_i x, with gates g_i (arXiv 2409.19611).

    W is a frozen weight of the backbone, x its input, and r and α the rank and scale of the LoRA
    blocks (A_i, B_i). A selector in each layer computes the gates from the blocks' outputs.
    """

    Config = AmLoraConfig
    traits = Traits(
        idea="an attention in every layer mixes the outputs of one LoRA per task",
        stores="one LoRA, and the selectors that were trained",
        lowers_disk="lower method.rank, or method.selector.hidden",
        lowers_ram="lower method.rank, or method.selector.hidden",
    )

    def __init__(self, backbone: Backbone, config: AmLoraConfig) -> None:
        self.backbone = backbone
        self.options = config
        selector = config.selector
        make_mixture = partial(
            Attending,
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
            make_mixture=make_mixture,
            make_layer=AttentiveLinear,
            dropout=config.dropout,
        )
        assert isinstance(self.pool.mixture, Attending)
        self.attending = self.pool.mixture
        self.layers: dict[str, AttentiveLinear] = {
            name: layer
            for name, layer in self.pool.layers.items()
            if isinstance(layer, AttentiveLinear)
        }
        if backbone.sees_padding or any(layer.positions_first for layer in self.layers.values()):
            raise RetainError(
                f"method: {type(backbone.model).__name__} has its positions in an order in which "
                "AM-LoRA cannot read its attention; take another method, such as sapt"
            )
        self._readers = set(self.layers.values())  # layers that read prompts only
        self._prompt_mask = torch.zeros(0)  # 1.0 at the tokens of the latest prompts, (B, S)
        if backbone.is_encoder_decoder:
            self._find_decoders()
            self._readers &= set(backbone.model.get_encoder().modules())
            if not self._readers:
                raise RetainError(
                    "method.target_modules: AM-LoRA reports its attention on prompts, so at least "
                    "one layer of the encoder must be among them; add one"
                )

    def _find_decoders(self) -> None:
        """Sets `reads_prompt` of each layer, by a forward on 3 prompt and 2 answer tokens."""

        def set_reads_prompt(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            assert isinstance(layer, AttentiveLinear)
            layer.reads_prompt = inputs[0].shape[1] == 3

        hooks = [
            layer.register_forward_pre_hook(set_reads_prompt) for layer in self.layers.values()
        ]
        ids = torch.ones(1, 3, dtype=torch.long, device=self.backbone.device)
        with torch.no_grad():
            self.backbone.model(input_ids=ids, decoder_input_ids=ids[:, :2], use_cache=False)
        for hook in hooks:
            hook.remove()

    # -- learning

    def phases(self, task: Task, context: TaskContext) -> Iterator[Phase]:
        """Yields one phase that trains the new block and the selectors."""
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
        """Adds the task's block and the trainable selectors to the estimate."""
        size, blocks = self.pool.block_size(), len(self.pool.blocks) + 1
        for layer in self.layers.values():
            size += sum(map(math.prod, layer.selector_shapes(blocks).values()))
        return super().footprint(task, batch_size) + trainable(size, size)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the cross-entropy on the task, and the sparsity term."""
        self._attend(batch)
        parts = {"task": self.backbone.answer_loss(batch)}
        if self.options.sparsity.weight:
            parts["sparsity"] = self.options.sparsity.weight * self._penalty(batch)
        self.attending.gates = {}
        self.attending.collects = False  # gradient checkpointing runs layers again in backward
        return parts

    def _attend(self, batch: Batch) -> None:
        """Switches the selectors on for the next forward pass, and collects its gates."""
        self.attending.set(None)
        self.attending.gates = {}
        self.attending.collects = True
        self.attending.on = bool(self.pool.blocks)
        by_instance = self.options.selector.granularity == "instance"
        self._prompt_mask = self._mask_of_prompts(batch)
        self.attending.prompt = self._prompt_mask if by_instance else None

    def _mask_of_prompts(self, batch: Batch) -> Tensor:
        """Returns 1.0 at prompt tokens and 0.0 at answer tokens and padding, (B, S)."""
        mask = batch["attention_mask"]
        if "labels" in batch and not self.backbone.is_encoder_decoder:
            mask = mask * (batch["labels"] == IGNORED)
        return mask.float()

    def _penalty(self, batch: Batch) -> Tensor:
        """Computes the sparsity term without λ: mean over real tokens, samples and layers."""
        terms = []
        for layer, gates in self.attending.gates.items():
            by_entropy = self.options.sparsity.penalty == "entropy"
            penalty = entropy(gates) if by_entropy else gates[..., 1:].sum(-1)  # (B, S or 1)
            terms.append(self._mean(penalty, layer, batch))
        return torch.stack(terms).mean()

    def _mean(self, values: Tensor, layer: AttentiveLinear, batch: Batch) -> Tensor:
        """Averages values (B, S or 1) over the tokens that the layer reads, then over samples."""
        if values.shape[1] == 1:
            return values.mean()
        real = batch["attention_mask"] if layer.reads_prompt else batch["labels"] != IGNORED
        return ((values * real).sum(1) / real.sum(1)).mean()

    def finish(self, task: Task, context: TaskContext) -> None:
        """Writes the gates of each layer on held-out prompts, for `retain inspect`."""
        prompts = [self.backbone.encode(example, with_answer=False) for example in task.dev]
        sum_to_one = self.options.selector.gate != "sigmoid"
        gates_by_prompt, effective = [], []
        for prompt in prompts:
            batch = self.backbone.collate([prompt])
            self.route(batch)
            with torch.no_grad():
                self.backbone.read(batch)
            gates_by_prompt.append(self.prompt_gates()[0])  # (layers, T + 1)
            for gates in self.attending.gates.values():
                number = entropy(gates).exp() if sum_to_one else gates.sum(-1)  # (1, S or 1)
                effective.append(number.mean())
        names = {layer: name for name, layer in self.layers.items()}
        values = {
            "layers": [names[layer] for layer in self.attending.gates],
            "gates": torch.stack(gates_by_prompt).mean(0).tolist(),
            "effective": float(torch.stack(effective).mean()),
        }
        write_json(context.folder / GATES, values)

    # -- inference

    def route(self, batch: Batch, task: str | None = None) -> None:
        """Switches the selectors on for the next forward pass or generation."""
        self._attend(batch)

    def routing(self) -> Tensor | None:
        """Returns the prompts' mean gates over layers and tokens, (B, T), after their forward.

        The zero block's gate is left out, so a sum may be below 1. With `gate: sigmoid` gates have
        no fixed sum.
        """
        return self.prompt_gates().mean(1)[:, 1:] if self.pool.blocks else None

    def prompt_gates(self) -> Tensor:
        """Computes each prompt's mean gates in each layer of the decoder-only model or the encoder.

        Returns:
            (B, layers, T + 1), the zero block first.
        """
        real = self._prompt_mask[:, :, None]  # (B, S, 1)
        by_layer = [
            (gates * real).sum(1) / real.sum(1) if gates.shape[1] > 1 else gates[:, 0]
            for layer, gates in self.attending.gates.items()
            if layer in self._readers
        ]
        return torch.stack(by_layer, 1)

    @classmethod
    def diagnostics(cls, run: RunDirectory, task: str | None) -> list[Section]:
        """Returns the section on the gates, over all layers and of one task by layer."""
        return amlora_diagnostics(run, task)

    # -- disk

    @property
    def exported_pool(self) -> LoraPool:
        """The pool of blocks, without the selectors that mix them."""
        return self.pool

    def save(self, context: TaskContext) -> None:
        """Writes the newest block and the trained selectors; older folders have the others."""
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
        """Restores the task's block and the selectors that were trained with it."""
        blocks = len(self.pool.blocks) + 1
        shapes = {
            f"{name}.{key}": shape
            for name, layer in self.layers.items()
            for key, shape in layer.selector_shapes(blocks).items()
        }
        tensors = read_weights(context.folder / SELECTOR, shapes)
        self.pool.load_block(context.folder, context.name)
        for name, layer in self.layers.items():
            selector = {key: tensors[f"{name}.{key}"] for key in layer.selector_shapes(blocks)}
            layer.load_selector(selector)
