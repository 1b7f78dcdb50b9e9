"""Memory: a share of each task's examples, kept and replayed while later tasks are learned."""

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
from retain.tasks.readers import parse_row

MEMORY = "memory.jsonl"


class MemoryConfig(Options):
    """How much is kept and how often it is replayed.

    `share` of a task's examples, at least one. After `every` optimizer steps comes one on kept
    examples; `reference` is SEEKR's published rule (see `retain.training.phase.Replay`), which in a
    run of few steps hardly replays at all.
    """

    share: Annotated[float, Field(gt=0, le=1)] = 0.01
    every: PositiveInt | Literal["reference"] = "reference"

    @field_validator("every", mode="wrap")
    @classmethod
    def _every(cls, value: Any, check: ValidatorFunctionWrapHandler) -> Any:
        try:
            return check(value)
        except ValidationError:
            raise ValueError(
                "Input should be a number of steps, 1 or more, or 'reference'"
            ) from None


class ReplayConfig(SequentialConfig):
    """Options of the methods with a memory."""

    replay: MemoryConfig = Field(default_factory=MemoryConfig)


class MemoryMethod(Sequential):
    """What the methods with a memory share: choosing, keeping and replaying examples.

    Kept rows are numbered through all tasks.
    """

    Config: ClassVar[type[MethodConfig]] = ReplayConfig
    traits: ClassVar[Traits] = replace(Sequential.traits, needs_old_data=True)

    def __init__(self, backbone: Backbone, config: Any) -> None:
        super().__init__(backbone, config)
        self.replay = config.replay
        self.memory: list[Features] = []

    def phases(self, task: Task, context: TaskContext) -> Iterator[Phase]:
        """One phase on the task's own examples, with those of older tasks in between."""
        every = None if self.replay.every == "reference" else self.replay.every
        for phase in super().phases(task, context):
            yield replace(phase, replay=ReplayRows(self.memory, every)) if self.memory else phase

    def finish(self, task: Task, context: TaskContext) -> None:
        """Keeps a share of the task's examples."""
        write_jsonl(
            context.folder / MEMORY, [example.as_row() for example in self.choose(task, context)]
        )
        # Read back: what was drawn at random is then the same in all processes.
        self.memory += self.numbered(read_examples(context.folder))

    def choose(self, task: Task, context: TaskContext) -> list[Example]:
        """Draws the examples to keep: the same ones at every call for a task."""
        return random.Random(context.seed).sample(list(task.train), self.kept(task))

    def kept(self, task: Task) -> int:
        """How many examples of a task are kept."""
        return max(1, int(self.replay.share * len(task.train) + 1e-9))

    def numbered(self, examples: list[Example]) -> list[Features]:
        """Tokens of examples that follow those in memory, each with its place there."""
        rows = [self.backbone.encode(example) for example in examples]
        first = len(self.memory)
        return [{**row, "example_id": [first + i], "is_replay": [1]} for i, row in enumerate(rows)]

    def footprint(self, task: Task, batch_size: int) -> Footprint:
        """And the share of its examples."""
        own = Footprint(kept=bytes_of(task.train) * self.kept(task) // len(task.train))
        return super().footprint(task, batch_size) + own

    def load(self, context: TaskContext) -> None:
        """Takes over a later task's weights, and adds what was kept of it."""
        super().load(context)
        self.memory += self.numbered(read_examples(context.folder))


def read_examples(folder: Path) -> list[Example]:
    """What was kept of a task."""
    path = folder / MEMORY
    return [parse_row(row, str(path)) for row in read_jsonl(path)]
