"""The contract between the learner and a method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from retain.backbone import Backbone, Batch
from retain.phase import ParamGroup, Phase
from retain.tasks import Task


class MethodConfig(BaseModel):
    """Base of every method's options: unknown keys are refused, values are checked."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Method(ABC):
    """How a learner avoids forgetting. Constructing one installs its layers in the backbone.

    Class attributes, shown by `retain methods`:
        idea: one line.
        stores: what it keeps per task.
        needs_task_id: whether inference has to be told the task.
        needs_old_data: whether training rereads earlier tasks' examples.
        forgets: False where an old task's answers cannot change, so they are not decoded again.
    """

    Config: ClassVar[type[MethodConfig]]
    idea: ClassVar[str]
    stores: ClassVar[str]
    needs_task_id: ClassVar[bool] = False
    needs_old_data: ClassVar[bool] = False
    forgets: ClassVar[bool] = True

    @abstractmethod
    def __init__(self, backbone: Backbone, config: Any) -> None:
        """Freezes the backbone and installs what the method adds to it."""

    @abstractmethod
    def phases(self, task: Task, folder: Path) -> Iterator[Phase]:
        """Yields the task's optimisations in order.

        Code before a `yield` prepares that phase, with everything before it learned. After a crash
        the whole is called again on the state before the task; phases that had ended are then not
        trained but restored, and the code between them runs again with the same random state.
        """

    def finish(self, task: Task, folder: Path) -> None:  # noqa: B027 — most methods need none
        """Gathers statistics and memory after the last phase."""

    @abstractmethod
    def route(self, batch: Batch, task: str | None = None) -> Tensor | None:
        """Sets, and returns, the weights over blocks (B, T) for the coming forward or generation.

        Args:
            batch: collated prompts.
            task: the task's name, for the methods that need it.
        """

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes the newest task's own files into its folder; never touches an older one."""

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Adds one saved task; called for each, oldest first."""


__all__ = ["Method", "MethodConfig", "ParamGroup", "Phase"]
