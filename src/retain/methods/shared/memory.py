"""Replay memory: a share of each task's examples, kept for training on later tasks."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    Field,
    PositiveInt,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
)

from retain.backbone import Backbone, Features
from retain.methods.base import (
    Footprint,
    MethodConfig,
    Options,
    Phase,
    ReplayRows,
    TaskContext,
    Traits,
    bytes_of,
)
from retain.methods.shared.sequential import Sequential, SequentialConfig
from retain.system.files import read_jsonl, write_jsonl
from retain.tasks import Example, Task
from retain.tasks.rows import parse_row

MEMORY = "memory.jsonl"
"""File of the kept examples in a task's folder."""


class MemoryConfig(Options):
    """How many examples are kept, and how often they are replayed.

    `share` is the kept share of a task's examples; at least one example is kept. A step on kept
    examples follows every `every` optimizer steps on the task. `reference` is SEEKR's published
    rule (see `retain.training.phase.ReplayRows`), which rarely replays in a run of few steps.
    `auto` is the same rule, but replays at least every eight steps.
    """

    share: Annotated[float, Field(gt=0, le=1)] = 0.01
    every: PositiveInt | Literal["reference", "auto"] = "reference"

    @field_validator("every", mode="wrap")
    @classmethod
    def _every(cls, value: Any, check: ValidatorFunctionWrapHandler) -> Any:
        try:
            return check(value)
        except ValidationError:
            raise ValueError(
                "Input should be a number of steps, 1 or more, or 'reference' or 'auto'"
            ) from None


class ReplayConfig(SequentialConfig):
    """Options of methods with a replay memory."""

    replay: MemoryConfig = Field(default_factory=MemoryConfig)


class MemoryMethod(Sequential):
    """Base class of methods that keep examples and replay them.

    Attributes:
        replay: the options of the memory.
        memory: the kept examples of all tasks, encoded, oldest task first. An example's
            `example_id` is its position in this list.
    """

    Config: ClassVar[type[MethodConfig]] = ReplayConfig
    traits: ClassVar[Traits] = replace(Sequential.traits, needs_old_data=True)

    def __init__(self, backbone: Backbone, config: Any) -> None:
        super().__init__(backbone, config)
        self.replay = config.replay
        self.memory: list[Features] = []

    def phases(self, task: Task, context: TaskContext) -> Iterator[Phase]:
        """Yields one phase on the task's examples, with batches of kept examples in between."""
        replay = ReplayRows(self.memory, self.replay.every)
        for phase in super().phases(task, context):
            yield replace(phase, replay=replay) if self.memory else phase

    def finish(self, task: Task, context: TaskContext) -> None:
        """Writes the task's kept examples and adds them to the memory."""
        chosen = self.choose(task, context)
        write_jsonl(context.folder / MEMORY, [example.as_row() for example in chosen])
        # Read back, so that all processes have what the first one has drawn.
        self.memory += self.numbered(read_examples(context.folder))

    def choose(self, task: Task, context: TaskContext) -> list[Example]:
        """Draws the examples to keep. Every call for a task returns the same ones."""
        return random.Random(context.seed).sample(list(task.train), self.kept(task))

    def kept(self, task: Task) -> int:
        """Returns the number of a task's examples that are kept."""
        return max(1, int(self.replay.share * len(task.train) + 1e-9))

    def numbered(self, examples: list[Example]) -> list[Features]:
        """Encodes examples and numbers them from the memory's current length."""
        encoded = [self.backbone.encode(example) for example in examples]
        return [
            {**features, "example_id": [number], "is_replay": [1]}
            for number, features in enumerate(encoded, start=len(self.memory))
        ]

    def footprint(self, task: Task, batch_size: int) -> Footprint:
        """Adds the kept examples to the estimate."""
        memory = Footprint(kept=bytes_of(task.train) * self.kept(task) // len(task.train))
        return super().footprint(task, batch_size) + memory

    def load(self, context: TaskContext) -> None:
        """Restores the task's weights and adds its kept examples to the memory."""
        super().load(context)
        self.memory += self.numbered(read_examples(context.folder))


def read_examples(folder: Path) -> list[Example]:
    """Reads the kept examples from a task's folder."""
    path = folder / MEMORY
    return [parse_row(row, str(path)) for row in read_jsonl(path)]
