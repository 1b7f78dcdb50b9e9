"""The contract that every method fulfils, and the values that pass through it."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import cached_property
from operator import add
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, field_validator, model_validator
from torch import Tensor

from retain.backbone import Backbone, Batch, Features
from retain.errors import RetainError
from retain.layers.lora_pool import LoraPool
from retain.layers.soft_prompt import PromptPool
from retain.runs.directory import RunDirectory
from retain.runs.sections import Section
from retain.tasks import Example, Task
from retain.training.phase import MOST, ParamGroup, Phase, ReplayRows


class Options(BaseModel):
    """Base class of a group of options. It refuses unknown keys and values out of range."""

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

Weighting = Literal["relative", "published"]
"""What a term of the loss is measured in.

`relative` divides it by a value of the same kind, so that its weight means the same for every
backbone and task. `published` takes it as the method's authors did.
"""


class MethodConfig(Options):
    """Base class of every method's options.

    Attributes:
        presets: options by the name of a preset; they apply where the user gives none. `paper`
            holds the published settings.
        preset: the name of the preset; `default` changes nothing unless the method defines it.
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
    def _preset_exists(cls, value: str) -> str:
        names = ("default", *cls.presets)
        if value not in names:
            raise ValueError(f"no such preset; choose one of {', '.join(names)}")
        return value

    @classmethod
    def unlike_preset(cls, options: Mapping[str, Any], preset: str) -> list[str]:
        """Returns the options that are not those of a preset, as `a.b`.

        Args:
            options: a run's, as JSON has them, nested or by such names; others have their default.
            preset: its name.

        Returns:
            Names in the preset's order; none where the method has no such preset.
        """
        published = dict(flat(cls.presets.get(preset, {})))
        given = dict(flat(cls().model_dump(mode="json"))) | dict(flat(options)) if published else {}
        return [name for name, value in published.items() if given[name] != value]


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields nested settings as `a.b` and value."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def filled_in(values: Any, preset: Mapping[str, Any]) -> Any:
    """Fills in options that are not given from those of a preset."""
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
    """Bytes that a method needs for one task in addition to the model, without activations.

    Attributes:
        kept: disk space that stays in use after the task.
        passing: disk space in use only while the task is learned.
        ram: memory of the model's device while the task is learned.
        trainable: size of the trainable parameters. The learner derives from it what gradients,
            optimizer and checkpoints need; the other fields do not include that.
    """

    kept: int = 0
    passing: int = 0
    ram: int = 0
    trainable: int = 0

    def __add__(self, other: Footprint) -> Footprint:
        return Footprint(*map(add, astuple(self), astuple(other)))


def trainable(parameters: int, added: int = 0) -> Footprint:
    """Returns the footprint of trainable parameters in float32.

    Args:
        parameters: the number of trainable parameters.
        added: how many of them are new with the task, and stored with it.
    """
    return Footprint(kept=4 * added, ram=4 * added, trainable=4 * parameters)


def bytes_of(examples: Iterable[Example]) -> int:
    """Returns the bytes that examples take in a JSONL file of the run, without line ends."""
    lines = (json.dumps(example.as_row(), ensure_ascii=False) for example in examples)
    return sum(len(line.encode()) for line in lines)


@dataclass(frozen=True)
class Traits:
    """Properties of a method that `retain methods` shows and the learner reads.

    Attributes:
        idea: the method in one line.
        stores: what the run keeps per task.
        needs_task_id: whether the task's name must be given at inference.
        needs_old_data: whether training re-reads earlier tasks' examples.
        forgets: False if the answers to an old task cannot change. Its scores are then copied
            instead of measured again.
        lowers_disk: advice for an error message: what reduces the disk space it needs. The learner
            asks `Method.lowers`, which may depend on the options.
        lowers_ram: likewise, what reduces the memory it needs.
        latest_only: names of large files that only the newest task's folder keeps, such as the
            weights of a fully fine-tuned model.
        fixed_mixture: whether the weights over blocks are the same for every input.
        waits: whether it trains on all tasks together once the last task of a stream is known.
    """

    idea: str
    stores: str
    needs_task_id: bool = False
    needs_old_data: bool = False
    forgets: bool = True
    lowers_disk: str = "free some, or take another method"
    lowers_ram: str = "free some, or take another method"
    latest_only: tuple[str, ...] = ()
    fixed_mixture: bool = False
    waits: bool = False


@dataclass(frozen=True)
class TaskContext:
    """The task for which a method's hook is called.

    Attributes:
        name: the task's name.
        index: the task's position in the stream, from 0.
        folder: the task's folder in the run. A method writes there and nowhere else.
        seed: the seed for everything random about this task. The global generators of torch, numpy
            and Python are seeded for the task too, before each phase and between phases.
    """

    name: str
    index: int
    folder: Path
    seed: int

    def generator(self, offset: int = 0) -> torch.Generator:
        """Returns a new CPU generator, seeded with the task's seed plus `offset`."""
        return torch.Generator().manual_seed(self.seed + offset)


class Method(ABC):
    """Base class of continual-learning methods. The constructor installs layers in the backbone.

    Class attributes:
        Config: the class of the method's options.
        traits: the method's properties.

    Attributes:
        backbone: the backbone that the method was constructed with.
        waiting: True while a method with `traits.waits` has trained nothing yet, because more
            tasks are to come. There is nothing to score then.
    """

    Config: ClassVar[type[MethodConfig]]
    traits: ClassVar[Traits]
    backbone: Backbone
    waiting: bool = False

    @abstractmethod
    def __init__(self, backbone: Backbone, config: Any) -> None:
        """Freezes the backbone and installs what the method adds to it."""

    @classmethod
    def trains_backbone(cls, options: Any) -> bool:
        """Tells whether the backbone's own weights are trained under these options."""
        return False

    @classmethod
    def shares_out(cls, options: Any) -> bool:
        """Tells whether `training.shard: full` can split the backbone's weights among processes.

        What the method has added, such as blocks, stays whole in every process. A method that
        trains the backbone returns True only if its loss and hooks use the backbone's weights
        through calls of the model alone, and never read or change them directly.
        """
        return not cls.trains_backbone(options)

    def lowers(self, what: Literal["disk", "ram"]) -> str:
        """Returns what reduces the disk space or memory it needs: advice for an error message."""
        return self.traits.lowers_disk if what == "disk" else self.traits.lowers_ram

    @cached_property
    def notices(self) -> list[str]:
        """What the user should know of the task that is learned; the learner reports and clears it.

        A method does not end a run because of what it has drawn at random. It goes on without, and
        adds a notice.
        """
        return []

    def footprint(self, task: Task, batch_size: int) -> Footprint:
        """Estimates the bytes that a task will need; here those of its stored test examples."""
        return Footprint(kept=bytes_of(task.test))

    def encoded(self, task: Task) -> list[Features]:
        """Encodes the task's training examples."""
        return [self.backbone.encode(example) for example in task.train]

    @abstractmethod
    def phases(self, task: Task, context: TaskContext) -> Iterator[Phase]:
        """Yields the optimisations that learn the task, in order.

        The code before a `yield` prepares that phase; it runs when the earlier phases are trained.
        After a crash `phases` is called again on the state before the task. Phases that had ended
        are then restored instead of trained, and the code between them runs again with the same
        random state.
        """

    def finish(self, task: Task, context: TaskContext) -> None:  # noqa: B027 — most need none
        """Collects what later tasks need, such as statistics or a memory, after the last phase."""

    @abstractmethod
    def route(self, batch: Batch, task: str | None = None) -> None:
        """Sets the weights over blocks for the next forward pass or generation.

        A method may also mask or cut off tokens of the batch, in place. Calling `route` twice on
        the same batch has the same effect as calling it once.

        Args:
            batch: collated prompts, with or without answers.
            task: the task's name, for methods that need it at inference.

        Raises:
            RetainError: when the method needs the task's name and got none, or an unknown one.
        """

    def routing(self) -> Tensor | None:
        """Returns the weights over blocks (B, T) of the routed batch; None without routing.

        Call it after the forward pass: some methods know the weights only then.
        """
        return None

    @property
    def exported_pool(self) -> LoraPool | PromptPool | None:
        """The pool of blocks that can be exported as PEFT adapters, or None."""
        return None

    @property
    def not_exported(self) -> str:
        """A sentence on what exported blocks lack, compared with the run; "" if nothing."""
        return ""

    def task_keys(self) -> Tensor | None:
        """Returns a direction per task (T, d), by which `retain compact` finds look-alike tasks.

        None where tasks cannot share a block. Else `exported_pool` is a `LoraPool` whose weights
        the method sets with `use`, one per task.
        """
        return None

    @abstractmethod
    def save(self, context: TaskContext) -> None:
        """Writes the newest task's files into its folder. Older folders must stay unchanged."""

    @abstractmethod
    def load(self, context: TaskContext) -> None:
        """Restores one saved task. Called for every task of a run, oldest first."""

    @classmethod
    def diagnostics(cls, run: RunDirectory, task: str | None) -> list[Section]:
        """Returns what `retain inspect` and the report page show of a run, without its model.

        Args:
            run: an opened run of this method.
            task: the task to show in detail, for a method that supports it.

        Raises:
            RetainError: when there is no such task, or a file is damaged.
        """
        return []


def block_index(task: str | None, blocks: Sequence[str], method: str) -> int:
    """Returns the index of a task's block, for methods that need the task's name.

    Args:
        task: the task's name.
        blocks: the names of the learned tasks.
        method: the method's name, for the error.

    Raises:
        RetainError: when the task's name is missing or unknown.
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
    "Weighting",
]
