"""SAPT-LoRA: learning and selection share one attention over a pool of LoRA blocks.

Per task: a generator block learns to write the task's inputs and leaves pseudo-samples; then a new
block, its key and the router's query projection learn the task through the attention-weighted
mixture of all blocks, while reflection on older tasks' pseudo-samples keeps their attention.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from retain.backbone import Backbone, Batch, Features
from retain.errors import RetainError
from retain.layers.pooled_linear import LoraPool
from retain.layers.soft_prompt import PromptPool
from retain.methods.base import (
    Footprint,
    Method,
    MethodConfig,
    ParamGroup,
    Phase,
    bytes_of,
    filled_in,
    learning,
)
from retain.methods.sapt.diagnostics import PSEUDO, sapt_diagnostics
from retain.methods.sapt.reflection import Reflection
from retain.methods.sapt.router import Router, generic_centre
from retain.methods.shared.lora import LoraMethodConfig
from retain.methods.shared.pseudo_samples import (
    BATCH,
    DrawConfig,
    generator_rows,
    taught_inputs,
    write_inputs,
    write_quality,
)
from retain.runs.directory import RunDirectory
from retain.runs.records import TASK
from retain.runs.sections import Section
from retain.system.files import read_json, read_jsonl, read_weights, write_jsonl, write_tensors
from retain.tasks import Example, Task

TRIGGER = "Write an input of the task:"
KEY_EXAMPLES = 256


class RouterConfig(MethodConfig):
    """The router's options; `rate` is times training.learning_rate, whatever the blocks' is.

    With `top_k` a prompt's most attended blocks share the weight, and of LoRA blocks only they are
    computed: for streams of hundreds of tasks.
    """

    hidden: PositiveInt = 100
    temperature: PositiveFloat | None = None
    centre: Literal["generic", "none"] = "generic"
    key: Literal["mean_query", "uniform"] = "mean_query"
    rate: PositiveFloat = 0.01
    top_k: Annotated[int, Field(ge=2)] | None = None  # one alone would have no gradient


class GeneratorConfig(DrawConfig):
    """The generator's options; `max_steps: null` is the run's own.

    `rate` is times that of the blocks, of which the generator is one: of SAPT-LoRA's that is
    training.learning_rate itself, of SAPT-Prompt's its own `rate` times it.
    """

    max_steps: PositiveInt | None = None
    rate: PositiveFloat = 3.0
    share: PositiveFloat = 0.02


class ReflectionConfig(MethodConfig):
    """λ of the reflection loss, and on what it is taken.

    A step reflects on at most so many old `tasks`, drawn at random, which stand for all of them: so
    its cost does not grow with the stream. Published: all (null).
    `samples: real` keeps inputs of old tasks instead of generated ones, as a comparison.
    """

    weight: NonNegativeFloat = 0.5
    samples: Literal["generated", "real"] = "generated"
    tasks: PositiveInt | None = 16


PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {
        "router": {"centre": "none", "key": "uniform", "rate": 1.0},
        "generator": {"rate": 1.0},
        "reflection": {"tasks": None},
    },
}


class RoutedConfig(MethodConfig):
    """What both kinds of SAPT take. A preset fills in what is not given; `paper` is the published
    router."""

    preset: Literal["default", "paper"] = "default"
    router: RouterConfig = Field(default_factory=RouterConfig)
    generator: GeneratorConfig = Field(default_factory=GeneratorConfig)
    reflection: ReflectionConfig = Field(default_factory=ReflectionConfig)

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        chosen = values.get("preset") if isinstance(values, Mapping) else None
        return filled_in(values, PRESETS.get(str(chosen), {}))


class SaptConfig(RoutedConfig, LoraMethodConfig):
    """SAPT-LoRA's options."""

    old_block_gradient: bool = False


class SaptPromptConfig(RoutedConfig):
    """SAPT-Prompt's options: rows of a prompt, and its rate, times training.learning_rate."""

    length: PositiveInt = 10
    rate: PositiveFloat = 100.0


class Routed(Method):
    """What both kinds of SAPT share: all but the kind of block."""

    stores = "one block, one key, the router's projection, pseudo-samples"
    lowers_disk = lowers_ram = "method.rank (of prompts, method.length), or method.router.hidden"

    def __init__(
        self, backbone: Backbone, config: RoutedConfig, pool: LoraPool | PromptPool, rate: float
    ) -> None:
        self.backbone = backbone
        self.pool = pool
        self.rate = rate  # of the blocks
        self.options = config
        centre = torch.zeros(backbone.width, device=backbone.device)
        if config.router.centre == "generic":
            centre = generic_centre(backbone)
        self.router = Router(
            backbone.width,
            config.router.hidden,
            config.router.temperature,
            centre,
            config.router.top_k,
        )
        self.router.to(backbone.device).eval()
        # A child of the model, so that data parallelism and checkpoints see it.
        backbone.model.add_module("retain_router", self.router)
        self.reflection = Reflection()
        self._pseudo: list[str] = []
        self._attention: Tensor | None = None

    # -- learning

    def phases(self, task: Task, folder: Path) -> Iterator[Phase]:
        """The generator, where its samples are reflected on, then the task."""
        self.pool.grow(task.name)
        if self.options.reflection.weight:
            yield from self._pseudo_samples(task, folder)
        self.pool.restart()
        self.router.grow(self._new_key(task))
        yield Phase(
            "learn",
            self.encoded(task),
            [
                ParamGroup("block", self.pool.parameters(), self.rate),
                ParamGroup("router", list(self.router.parameters()), self.options.router.rate),
            ],
            self._loss,
            over={"reflection": "step"},
        )

    def _pseudo_samples(self, task: Task, folder: Path) -> Iterator[Phase]:
        """Has the new block write them, unless real inputs are kept."""
        count = max(1, round(self.options.generator.share * len(task.train)))
        count = min(count, len(task.train))
        if self.options.reflection.samples == "real":
            chosen = random.Random(torch.initial_seed()).sample(list(task.train), count)
            self._pseudo = [example.prompt for example in chosen]
        else:
            options = self.options.generator
            rows = generator_rows(self.backbone, task.train, TRIGGER)
            yield Phase(
                "generator",
                rows,
                [ParamGroup("generator", self.pool.parameters(), self.rate * options.rate)],
                self._generator_loss,
                options.max_steps,
            )
            taught = taught_inputs(self.backbone, rows)
            written = write_inputs(
                self.backbone,
                TRIGGER,
                lambda size: self.pool.use_block(size, -1),
                count,
                options,
                taught,
                "method.generator.max_steps",
            )
            self._pseudo = written.texts
            write_quality(folder, self.backbone, written.texts, written.dropped, taught)
        kept = folder / PSEUDO
        write_jsonl(kept, [{"prompt": text} for text in self._pseudo])
        self._pseudo = [row["prompt"] for row in read_jsonl(kept)]  # the same in all processes

    def finish(self, task: Task, folder: Path) -> None:
        """Keeps the mean attention over held-out inputs, and the pseudo-samples' embeddings."""
        e = self._embed([example.prompt for example in task.dev])
        with torch.no_grad():
            self._attention = self.router.attention(e).mean(0)
        if self.options.reflection.weight:
            self.reflection.add(self._embed(self._pseudo), self._attention)

    def footprint(self, task: Task, batch_size: int) -> Footprint:
        """The task's block, its key and the router's projection, and its pseudo-samples."""
        size = self.pool.block_size() + self.backbone.width
        size += sum(tensor.numel() for tensor in self.router.projection().values())
        share = min(1.0, self.options.generator.share) if self.options.reflection.weight else 0.0
        own = Footprint(kept=int(share * bytes_of(task.train)))
        return super().footprint(task, batch_size) + learning(size, size) + own

    def _generator_loss(self, batch: Batch) -> dict[str, Tensor]:
        self.pool.use_block(len(batch["input_ids"]), -1)
        return {"generator": self.backbone.answer_loss(batch)}

    def _loss(self, batch: Batch) -> dict[str, Tensor]:
        self.route(batch)
        parts = {"task": self.backbone.answer_loss(batch)}
        if self.reflection.embeddings:
            options = self.options.reflection
            loss = self.reflection.loss(self.router, options.tasks)
            parts["reflection"] = options.weight * loss
        return parts

    def _new_key(self, task: Task) -> Tensor:
        if self.options.router.key == "uniform":
            return torch.empty(self.backbone.width, device=self.backbone.device).uniform_(-1, 1)
        e = self._embed([example.prompt for example in task.train[:KEY_EXAMPLES]])
        with torch.no_grad():
            return self.router.query(e).mean(0)

    def _embed(self, prompts: list[str]) -> Tensor:
        rows: list[Features] = [
            self.backbone.encode(Example(prompt, ("",)), with_answer=False) for prompt in prompts
        ]
        batches = [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]
        pooled = [self.backbone.pooled_embedding(self.backbone.collate(b)) for b in batches]
        return torch.cat(pooled)

    # -- inference

    def route(self, batch: Batch, task: str | None = None) -> None:
        """Attention of each prompt over the blocks; no task id is needed."""
        embedding = self.backbone.pooled_embedding(batch)
        self.pool.use(self.router(embedding) if self.pool.blocks else None)

    def routing(self) -> Tensor | None:
        """The attention (B, T)."""
        return self.pool.weights

    @classmethod
    def diagnostics(cls, run: RunDirectory, task: str | None) -> list[Section]:
        """The attention over the blocks, and the pseudo-samples."""
        return sapt_diagnostics(run)

    # -- disk

    def save(self, folder: Path) -> None:
        """Writes the block, the router with the task's key, and the mean attention."""
        assert self.router.key is not None
        assert self._attention is not None
        self.pool.save_block(folder, self.backbone.name)
        tensors = {
            **self.router.projection(),
            "key": self.router.key,
            "centre": self.router.centre,
            "attention": self._attention,
        }
        write_tensors(folder / "router.safetensors", tensors)

    def load(self, folder: Path) -> None:
        """Adds the task's block and key; the query projection is the latest task's."""
        path = folder / "router.safetensors"
        tensors = read_weights(path)
        own = {
            **self.router.projection(),
            "key": self.router.centre,
            "centre": self.router.centre,
            "attention": torch.empty(len(self.pool.blocks) + 1),
        }
        for name, tensor in own.items():
            if name not in tensors or tensors[name].shape != tensor.shape:
                raise RetainError(
                    f"{path}: '{name}' does not fit this backbone; load the run with its own, or "
                    "restore the file from a copy of the run"
                )
        self.pool.load_block(folder, read_json(folder / TASK)["name"])
        with torch.no_grad():
            for name, tensor in (*self.router.projection().items(), ("centre", self.router.centre)):
                tensor.copy_(tensors[name])
        self.router.grow(tensors["key"].to(self.router.centre))
        if self.options.reflection.weight:
            pseudo = [row["prompt"] for row in read_jsonl(folder / PSEUDO)]
            self.reflection.add(self._embed(pseudo), tensors["attention"].to(self.router.centre))


class Sapt(Routed):
    """W x + Σ_i a_i (α/r) B_i A_i x with a = router(prompt) (arXiv 2401.08295, eq. 6)."""

    Config = SaptConfig
    idea = "attention over a pool of LoRA blocks guides both learning and selection"

    def __init__(self, backbone: Backbone, config: SaptConfig) -> None:
        pool = LoraPool(
            backbone.model,
            config.target_modules,
            config.rank,
            config.alpha,
            config.old_block_gradient,
        )
        pool.mixture.top_k = config.router.top_k
        super().__init__(backbone, config, pool, rate=1.0)


class SaptPrompt(Routed):
    """Σ_i a_i P_i before the prompt's tokens, with a = router(prompt) (arXiv 2401.08295)."""

    Config = SaptPromptConfig
    idea = "the same attention and reflection over a pool of soft prompts"

    def __init__(self, backbone: Backbone, config: SaptPromptConfig) -> None:
        super().__init__(backbone, config, PromptPool(backbone, config.length), config.rate)
