"""The contract between the learner and a method."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from operator import add
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict, field_validator, model_validator
from torch import Tensor

from retain.backbone import Backbone, Batch, Features
from retain.errors import RetainError
from retain.layers.pooled_linear import LoraPool
from retain.layers.soft_prompt import PromptPool
from retain.runs.directory import RunDirectory
from retain.runs.sections import Section
from retain.tasks import Example, Task
from retain.training.phase import MOST, ParamGroup, Phase, ReplayRows


class Options(BaseModel):
    """Base of a group of options: unknown keys are refused, values are checked."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _sensible(cls, value: Any) -> Any:
        if isinstance(value, int | float) and value > MOST:
            raise ValueError(f"Input should be less than or equal to {MOST}")
        if value == []:
            raise ValueError("Input should have an entry, or be null for the default")
        return value


Presets = Mapping[str, Mapping[str, Any]]
"""Options by the name of a preset."""


class MethodConfig(Options):
    """Base of every method's options.

    Attributes:
        presets: `paper` has the published settings, `default` none. They fill in what is not given.
    """

    presets: ClassVar[Presets] = {}

    preset: str = "default"

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        name = values.get("preset") if isinstance(values, Mapping) else None
        return filled_in(values, cls.presets.get(str(name), {}))

    @field_validator("preset")
    @classmethod
    def _there_is_one(cls, value: str) -> str:
        known = ("default", *cls.presets)
        if value not in known:
            raise ValueError(f"no such preset; choose one of {', '.join(known)}")
        return value


def filled_in(values: Any, preset: Mapping[str, Any]) -> Any:
    """Options as given, with those of a preset where none is given."""
    if not isinstance(values, Mapping):
        return values
    filled = dict(values)
    for key, default in preset.items():
        given = values.get(key, {} if isinstance(default, Mapping) else default)
        both = isinstance(default, Mapping) and isinstance(given, Mapping)
        filled[key] = {**default, **given} if both else given
    return filled


@dataclass(frozen=True)
class Footprint:
    """What a method needs for one task beside the model, in bytes. Activations are not in it.

    Attributes:
        kept: on disk, for good.
        passing: on disk, while the task is learned.
        ram: in the memory of the model's device, while it is learned.
        trainable: of the trainable parameters. Their gradients, and what an optimizer keeps of
            them in memory and in checkpoints, are not in the others.
    """

    kept: int = 0
    passing: int = 0
    ram: int = 0
    trainable: int = 0

    def __add__(self, other: Footprint) -> Footprint:
        return Footprint(*map(add, astuple(self), astuple(other)))


def trainable(parameters: int, added: int = 0) -> Footprint:
    """The footprint of trainable parameters in float32.

    Args:
        parameters: how many are trainable.
        added: how many of them the task adds to the model and keeps.
    """
    return Footprint(kept=4 * added, ram=4 * added, trainable=4 * parameters)


def bytes_of(examples: Iterable[Example]) -> int:
    """What examples take in a file of the run."""
    rows = (json.dumps(example.as_row(), ensure_ascii=False) for example in examples)
    return sum(len(row.encode()) for row in rows)


@dataclass(frozen=True)
class Traits:
    """What a method is and needs, as `retain methods` shows it and the learner reads it.

    Attributes:
        idea: one line.
        stores: what it keeps per task.
        needs_task_id: whether the task's name must be given at inference.
        needs_old_data: whether training reads earlier tasks' examples again.
        forgets: False where an old task's answers cannot change, so they are not decoded again.
        lowers_disk: which settings lower its need for disk.
        lowers_ram: which settings lower its need for memory.
        latest_only: names of files that only the newest task's folder keeps: full models.
        fixed_mixture: whether its weights over blocks are the same for every input.
        waits: whether it learns the tasks of a stream together, when the last one has come.
    """

    idea: str
    stores: str
    needs_task_id: bool = False
    needs_old_data: bool = False
    forgets: bool = True
    lowers_disk: str = "nothing in the settings"
    lowers_ram: str = "nothing in the settings"
    latest_only: tuple[str, ...] = ()
    fixed_mixture: bool = False
    waits: bool = False


@dataclass(frozen=True)
class TaskContext:
    """The task that a hook of the contract is called for.

    Attributes:
        name: the task's.
        index: its place in the stream, from 0.
        folder: its folder in the run; a method writes there and nowhere else.
        seed: fixes what is drawn for it. torch's, numpy's and Python's global generators start from
            it too, before each phase and before the code between phases.
    """

    name: str
    index: int
    folder: Path
    seed: int

    def generator(self, offset: int = 0) -> torch.Generator:
        """A CPU generator of its own, which other draws do not move."""
        return torch.Generator().manual_seed(self.seed + offset)


class Method(ABC):
    """How a learner avoids forgetting. Constructing one installs its layers in the backbone.

    Class attributes:
        Config: its options.
        traits: what it is and needs.

    Attributes:
        backbone: what it was constructed with.
        waiting: of a method that waits (`traits.waits`), whether it still does: then there is
            nothing to score yet.
    """

    Config: ClassVar[type[MethodConfig]]
    traits: ClassVar[Traits]
    backbone: Backbone
    waiting: bool = False

    @abstractmethod
    def __init__(self, backbone: Backbone, config: Any) -> None:
        """Freezes the backbone and installs what the method adds to it."""

    def footprint(self, task: Task, batch_size: int) -> Footprint:
        """Estimates, before anything is trained, what a task will take: its test examples."""
        return Footprint(kept=bytes_of(task.test))

    def encoded(self, task: Task) -> list[Features]:
        """The task's training rows."""
        return [self.backbone.encode(example) for example in task.train]

    @abstractmethod
    def phases(self, task: Task, context: TaskContext) -> Iterator[Phase]:
        """Yields the task's optimisations in order.

        Code before a `yield` prepares that phase, with everything before it learned. After a crash
        the whole is called again on the state before the task; phases that had ended are then not
        trained but restored, and the code between them runs again with the same random state.
        """

    def finish(self, task: Task, context: TaskContext) -> None:  # noqa: B027 — most need none
        """Gathers statistics and memory after the last phase."""

    @abstractmethod
    def route(self, batch: Batch, task: str | None = None) -> None:
        """Sets the weights over blocks for the coming forward or generation.

        A method may change which of the batch's tokens are seen: it masks them, or cuts them off.
        Routing a batch twice is routing it once.

        Args:
            batch: collated prompts.
            task: the task's name, for the methods that need it.
        """

    def routing(self) -> Tensor | None:
        """The weights over blocks (B, T) that the routed prompts were read with.

        Some methods know them only after the forward. None for a method that does not route.
        """
        return None

    @property
    def exported_pool(self) -> LoraPool | PromptPool | None:
        """The pool whose blocks stand alone as PEFT adapters; None where there is none."""
        return None

    @abstractmethod
    def save(self, context: TaskContext) -> None:
        """Writes the newest task's own files into its folder; never touches an older one."""

    @abstractmethod
    def load(self, context: TaskContext) -> None:
        """Adds one saved task; called for each, oldest first."""

    @classmethod
    def diagnostics(cls, run: RunDirectory, task: str | None) -> list[Section]:
        """What `retain inspect` and the report page show of a run; loads no model.

        Args:
            run: an opened run of this method.
            task: the one to show in detail, for a method that does so; its section names it.

        Raises:
            RetainError: when there is no such task, or a file is damaged.
        """
        return []


def block_of(task: str | None, blocks: Sequence[str], method: str) -> int:
    """The number of a task's block, for methods that need the task's name.

    Raises:
        RetainError: when no task is named, or one that has no block.
    """
    if task in blocks:
        return blocks.index(task)
    known = ", ".join(blocks)
    raise RetainError(
        f"task '{task}': method {method} has not learned it; name one of {known}"
        if task
        else f"method {method} needs the task's name (--task); it knows {known}"
    )


__all__ = [
    "Footprint",
    "Method",
    "MethodConfig",
    "Options",
    "ParamGroup",
    "Phase",
    "Presets",
    "ReplayRows",
    "TaskContext",
    "Traits",
]
