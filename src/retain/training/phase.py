"""One optimisation, described: what a method asks for and training carries out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

from pydantic import Field
from torch import Tensor, nn

from retain.backbone import Batch, Features

Unit = Literal["answers", "rows", "step"]
"""What a part of the loss is a mean over: a batch's answer tokens, its rows, or nothing in it.

An optimizer step whose rows come in several micro-batches weights them by it, so that it is the
step on one batch of all rows.
"""


UNITS: tuple[Unit, ...] = get_args(Unit)

MOST = 10**6
"""The largest number that an option may be: what is beyond it overflows, or never ends."""
Count = Annotated[int, Field(gt=0, le=MOST)]
Amount = Annotated[float, Field(gt=0, le=MOST)]


@dataclass(frozen=True)
class ParamGroup:
    """Parameters that may move in a phase, and how fast (times training.learning_rate)."""

    name: str
    parameters: list[nn.Parameter]
    rate: float = 1.0


@dataclass(frozen=True)
class ReplayRows:
    """Rows of older tasks, in batches of their own between the task's.

    Attributes:
        rows: what is replayed.
        every: after so many optimizer steps on the task comes one on replayed rows, beyond the
            phase's number of steps; None is SEEKR's published rule, one pass over the rows in each
            epoch: steps of the task's epoch // steps that the replayed rows fill.
    """

    rows: Sequence[Features]
    every: int | None = None


@dataclass(frozen=True)
class Phase:
    """One optimisation.

    Attributes:
        name: with the task and the step it is the checkpoint's key.
        data: the training rows.
        groups: exactly what may move; everything else is frozen.
        loss: a batch → named parts (scalars); their sum is minimised.
        max_steps: instead of the run's own, when not None.
        tasks: how many tasks the data is of; the run's own number of steps counts for each.
        replay: rows of older tasks to go over in between.
        seed_slot: which of the task's seeds fixes the order of rows and dropout. The phase that
            learns the task has 1 in every method, so that all see its rows in the same order.
        before_step: called after the backward pass, with gradients clipped and averaged over
            micro-batches and processes, before the optimizer's step (gradient projection).
        after_step: called after the optimizer's step, before gradients are cleared (projection or
            merging of weights).
        state: tensors that the hooks read and write; checkpoints carry them, so that a resumed
            phase goes on with the same ones. Each hook finds in it what it last put there.
        units: the unit of each part of the loss that is not a mean over answer tokens.
    """

    name: str
    data: Sequence[Features]
    groups: list[ParamGroup]
    loss: Callable[[Batch], dict[str, Tensor]]
    max_steps: int | None = None
    tasks: int = 1
    replay: ReplayRows | None = None
    units: Mapping[str, Unit] = field(default_factory=dict)
    seed_slot: int = 1
    before_step: Callable[[], None] | None = None
    after_step: Callable[[], None] | None = None
    state: dict[str, Tensor] = field(default_factory=dict)
