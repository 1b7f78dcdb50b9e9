"""The description of one optimisation, which a method yields and training carries out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

from pydantic import Field
from torch import Tensor, nn

from retain.backbone import Batch, Features

Unit = Literal["answers", "rows", "step"]
"""What a part of the loss is a mean over: answer tokens, examples (`rows`), or neither (`step`).

With gradient accumulation the micro-batches of a step are weighted by it, so that the step equals
the step on one batch of all examples.
"""


UNITS: tuple[Unit, ...] = get_args(Unit)

MOST = 10**6
"""The largest number that an option may have. Larger ones overflow, or training never ends."""
Count = Annotated[int, Field(gt=0, le=MOST)]
Amount = Annotated[float, Field(gt=0, le=MOST)]


@dataclass(frozen=True)
class ParamGroup:
    """Parameters that a phase trains.

    Attributes:
        name: the group's name, for messages.
        parameters: the trainable parameters.
        rate: their learning rate, as a multiple of training.learning_rate.
    """

    name: str
    parameters: list[nn.Parameter]
    rate: float = 1.0


@dataclass(frozen=True)
class ReplayRows:
    """Examples of older tasks, in separate batches between those of the task.

    Attributes:
        rows: the encoded examples to replay.
        every: one step on replayed examples follows every so many steps on the task, in addition to
            the phase's number of steps. `reference` is SEEKR's published rule, one pass over the
            replayed examples per epoch: (steps of a task's epoch) // (steps of a pass). `auto` is
            the same, but at most 8.
    """

    rows: Sequence[Features]
    every: int | Literal["reference", "auto"] = "reference"


@dataclass(frozen=True)
class Phase:
    """One optimisation.

    Attributes:
        name: names the phase's checkpoints, together with task and step.
        data: the encoded training examples.
        groups: all trainable parameters; everything else is frozen.
        loss: computes the named parts of the loss (scalars) of a batch; their sum is minimised.
        max_steps: optimizer steps of this phase; None takes the run's setting.
        tasks: the number of tasks that the data is from; the run's number of steps counts per task.
        replay: examples of older tasks, in batches in between.
        seed_slot: which of the task's seeds fixes the order of examples and dropout. The phase that
            trains on the task has 1 in every method, so that all get its examples in the same
            order.
        before_step: called after the backward pass, with gradients clipped and averaged over
            micro-batches and processes, before the optimizer's step (gradient projection).
        after_step: called after the optimizer's step, before gradients are cleared (projection or
            merging of weights).
        state: tensors that the hooks read and write; checkpoints carry them, so that a resumed
            phase continues with the same values.
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
