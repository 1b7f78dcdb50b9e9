"""SAPT: training and inference use the same attention over a pool of blocks.

By default the router is in closed form (`router.kind: whitened`): attention is not trained, and the
block is all that is, in one phase, within the mixture of all blocks. There a block may begin as a
copy of a learned task's (`start`).

As published (`router.kind: attention`), for each task, first the new block is trained to generate
the task's inputs, which gives pseudo-samples. Then the block starts again, and is trained on the
task together with its key and the router's query projection, within the attention-weighted mixture
of all blocks. Reflection on the pseudo-samples of older tasks keeps their attention unchanged.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from retain.backbone import Backbone, Batch
from retain.errors import RetainError
from retain.layers.lora_pool import LoraPool
from retain.layers.soft_prompt import PromptPool, hide_virtual
from retain.methods.base import (
    Footprint,
    ParamGroup,
    Phase,
    TaskContext,
    Traits,
    bytes_of,
)
from retain.methods.sapt.diagnostics import PSEUDO, sapt_diagnostics
from retain.methods.sapt.options import RoutedConfig, SaptConfig, SaptPromptConfig
from retain.methods.sapt.reflection import Reflection
from retain.methods.sapt.router import AttentionRouter
from retain.methods.sapt.start import START, Start, lowest_loss, nearest
from retain.methods.sapt.whitened import WhitenedRouter
from retain.methods.shared.pseudo_samples import (
    generator_rows,
    taught_inputs,
    write_inputs,
    write_quality,
)
from retain.methods.shared.routed import RoutedPool
from retain.runs.directory import RunDirectory
from retain.runs.sections import Section
from retain.system import processes
from retain.system.files import read_jsonl, write_json, write_jsonl
from retain.tasks import Task
from retain.training.phase import Unit

TRIGGER = "Write an input of the task:"
SMALLER_BLOCKS = "lower method.rank (of prompts, method.length)"


class Attentive(RoutedPool):
    """Base class of SAPT-LoRA and SAPT-Prompt, which differ only in the kind of block.

    Attributes:
        reflection: the pseudo-samples and attention of older tasks.
    """

    traits: ClassVar[Traits] = Traits(
        idea="",
        stores="one block, the router's state, pseudo-samples if reflection is on",
        lowers_disk=SMALLER_BLOCKS,
        lowers_ram=SMALLER_BLOCKS,
    )
    units: ClassVar[Mapping[str, Unit]] = {"reflection": "step"}
    router: AttentionRouter | WhitenedRouter

    def __init__(
        self, backbone: Backbone, config: RoutedConfig, pool: LoraPool | PromptPool, rate: float
    ) -> None:
        super().__init__(backbone, config, pool, config.router.make(backbone))
        self.block_rate, self.router_rate = rate, config.router.rate
        self.reflection = Reflection()
        self._pseudo: list[str] = []  # of the task that is being learned
        self._attention: Tensor | None = None  # mean on its held-out prompts, (T,)
        self._began = Start()  # of the newest block

    # -- learning

    def phases(self, task: Task, context: TaskContext) -> Iterator[Phase]:
        """Yields a phase for the generator, if reflection needs it, and one for the task."""
        self.pool.grow(task.name, context.seed)
        if self.options.reflection.weight:
            yield from self._pseudo_samples(task, context)
        self.pool.restart(context.seed)
        phase = self.learning_phase(task, context)
        self._began = self._begin(task)
        yield phase

    def _begin(self, task: Task) -> Start:
        """Copies a learned task's block to the new one, if `start` finds one to copy."""
        if self.options.start == "fresh" or len(self.pool.blocks) == 1:
            return Start()
        assert isinstance(self.router, WhitenedRouter)  # RoutedConfig refuses the other kind
        cosines = processes.broadcast(self.router.cosines())  # rounding may differ between devices
        if self.options.start == "nearest":
            start = nearest(self.pool.blocks, cosines, self.options.start_above)
        else:
            start = processes.broadcast(lowest_loss(self.backbone, self.pool, cosines, task))
        if start.copied:
            assert start.nearest is not None
            self.pool.copy_block(self.pool.blocks.index(start.nearest))
        self.notices.append(str(start))
        return start

    def _pseudo_samples(self, task: Task, context: TaskContext) -> Iterator[Phase]:
        """Trains the new block as generator and samples from it, or keeps real inputs."""
        count = max(1, round(self.options.generator.share * len(task.train)))
        count = min(count, len(task.train))
        if self.options.reflection.samples == "real":
            chosen = random.Random(context.seed).sample(list(task.train), count)
            self._pseudo = [example.prompt for example in chosen]
        else:
            options = self.options.generator
            answered = options.target == "example"
            rows = generator_rows(self.backbone, task.train, TRIGGER, answered)  # one per example
            rate = self.block_rate * options.rate
            yield Phase(
                "generator",
                rows,
                [ParamGroup("generator", self.pool.parameters(), rate)],
                self._generator_loss,
                options.max_steps,
                seed_slot=2,
            )
            taught = taught_inputs(self.backbone, rows, answered)
            written = write_inputs(
                self.backbone,
                TRIGGER,
                lambda size: self.pool.use_block(size, -1),
                count,
                options,
                taught,
                "method.generator.max_steps",
                answered,
            )
            self._pseudo = written.texts
            self.notices += [written.notice] if written.notice else []
            write_quality(context.folder, self.backbone, written.texts, written.dropped, taught)
        path = context.folder / PSEUDO
        write_jsonl(path, [{"prompt": text} for text in self._pseudo])
        # Read back, so that all processes have what the first one has sampled.
        self._pseudo = [row["prompt"] for row in read_jsonl(path)]

    def finish(self, task: Task, context: TaskContext) -> None:
        """Keeps the mean attention on held-out prompts, and the pseudo-samples' embeddings."""
        self.pool.use(None)
        e = self.router.embed([example.prompt for example in task.dev])
        with torch.no_grad():
            self._attention = self.router.attention(e).mean(0)
        if self.options.reflection.weight and self._pseudo:
            self.reflection.add(self.router.embed(self._pseudo), self._attention)

    def footprint(self, task: Task, batch_size: int) -> Footprint:
        """Adds the task's block, router state and pseudo-samples to the estimate."""
        share = min(1.0, self.options.generator.share) if self.options.reflection.weight else 0.0
        pseudo = Footprint(kept=int(share * bytes_of(task.train)))
        return super().footprint(task, batch_size) + pseudo

    def _generator_loss(self, batch: Batch) -> dict[str, Tensor]:
        self.pool.use_block(len(batch["input_ids"]), -1)
        return {"generator": self.backbone.answer_loss(batch)}

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the cross-entropy on the task, and the reflection loss on older tasks."""
        parts = super().loss(batch)
        if self.reflection.embeddings:
            options = self.options.reflection
            loss = self.reflection.loss(self.router, options.tasks)
            parts["reflection"] = options.weight * loss
        return parts

    # -- disk and diagnostics

    @property
    def not_exported(self) -> str:
        """A sentence, if the backbone alone answers prompts of no learned task."""
        if self.options.router.unknown == "nearest":
            return ""
        return "Prompts of no learned task are not told apart outside the run (router.unknown)."

    def task_keys(self) -> Tensor:
        """Returns the tasks' keys, (T, d)."""
        return self.router.task_keys()

    def save(self, context: TaskContext) -> None:
        """Writes the newest block, the router's state, and what the block began as."""
        super().save(context)
        if self.options.start != "fresh":
            write_json(context.folder / START, self._began.model_dump())

    @classmethod
    def diagnostics(cls, run: RunDirectory, task: str | None) -> list[Section]:
        """Returns the sections on attention, on what blocks began as, and on pseudo-samples."""
        return sapt_diagnostics(run)

    def state(self) -> dict[str, Tensor]:
        """Returns the router's tensors and the mean attention on the task's held-out prompts."""
        assert self._attention is not None
        return {**super().state(), "attention": self._attention}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of the `state` of one more task, to check its file."""
        return {**super().shapes(), "attention": (len(self.pool.blocks) + 1,)}

    def restore(self, state: Mapping[str, Tensor], context: TaskContext) -> None:
        """Restores the task in the router, and its pseudo-samples for reflection."""
        super().restore(state, context)
        if self.options.reflection.weight:
            pseudo = [row["prompt"] for row in read_jsonl(context.folder / PSEUDO)]
            attention = state["attention"].to(self.router.centre)
            if pseudo:
                self.reflection.add(self.router.embed(pseudo), attention)


class Sapt(Attentive):
    """W x + Σ_i a_i (α/r) B_i A_i x, where a = router(prompt) (arXiv 2401.08295, eq. 6).

    W is a frozen weight of the backbone, x its input, and r and α the rank and scale of the LoRA
    blocks (A_i, B_i). a are the weights of the router.
    """

    Config = SaptConfig
    traits = replace(
        Attentive.traits,
        idea="attention over a pool of LoRA blocks guides both learning and selection",
    )

    def __init__(self, backbone: Backbone, config: SaptConfig) -> None:
        pool = LoraPool(
            backbone.model,
            config.target_modules,
            config.rank,
            config.alpha,
            config.old_block_gradient,
            dropout=config.dropout,
        )
        pool.mixture.top_k = config.router.top_k
        super().__init__(backbone, config, pool, rate=1.0)


class SaptPrompt(Attentive):
    """[Σ_i a_i P_i; x], where a = router(prompt) (arXiv 2401.08295).

    P_i are the soft prompts, x the embedded input, and a the weights of the router.
    """

    Config = SaptPromptConfig
    traits = replace(
        Attentive.traits,
        idea="the same attention over a pool of soft prompts",
    )

    def __init__(self, backbone: Backbone, config: SaptPromptConfig) -> None:
        if backbone.sees_padding and config.router.unknown == "base":
            raise RetainError(
                f"method.router.unknown: base: {type(backbone.model).__name__} cannot mask the "
                "soft prompt where no task is learned; take nearest, or method sapt"
            )
        super().__init__(backbone, config, PromptPool(backbone, config.length), config.rate)

    def route(self, batch: Batch, task: str | None = None) -> None:
        """Sets the router's weights, and hides the soft prompt where all of them are zero."""
        super().route(batch, task)
        weights = self.pool.weights
        if weights is not None:
            hide_virtual(self.backbone, batch, (weights == 0).all(1))
