"""The settings of training, named as in transformers.TrainingArguments."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from retain.system import processes
from retain.training.extra import check_scheduler, checked_extra
from retain.training.optimizer import Optimizer
from retain.training.phase import MOST, Amount, Count
from retain.training.trackers import Tracker

Shard = Literal["none", "optimizer", "full"]
"""What several processes share out; see `retain.training.shard`."""
FREE = ("gradient_checkpointing", "torch_compile", "shard", "save_steps", "report_to")
"""What may change while a run goes on: it changes the work, and its numbers by rounding at most."""
POLYNOMIAL_END = 1e-7
"""The learning rate at which transformers' polynomial schedule ends."""


class TrainingConfig(BaseModel):
    """How a task is trained. Names and meanings are those of transformers.TrainingArguments.

    `extra` passes further arguments on to Trainer: those in `retain.training.extra.PASSED_ON`.
    `shard` is retain's own option. It says what is split among several processes: nothing, the
    optimizer's state, or (`full`) the backbone's weights and gradients too
    (`retain.training.shard`).
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    max_steps: int = -1  # −1 leaves it to num_train_epochs
    num_train_epochs: Amount = 3.0
    per_device_train_batch_size: Count = 8
    # Bounded, since Trainer reads all micro-batches of a step before the first is computed.
    gradient_accumulation_steps: Annotated[int, Field(gt=0, le=10**4)] = 1
    learning_rate: Amount = 1e-3
    lr_scheduler_type: Literal[
        "constant", "constant_with_warmup", "linear", "cosine", "polynomial"
    ] = "linear"
    warmup_steps: NonNegativeInt = 0
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of a phase's steps
    weight_decay: Annotated[float, Field(ge=0, le=MOST)] = 0.0
    max_grad_norm: NonNegativeFloat = 1.0
    optim: Optimizer = "adamw_torch_fused"
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9  # of the three AdamW, as the next two
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    adam_epsilon: Annotated[float, Field(gt=0, le=1)] = 1e-8
    bf16: bool | Literal["auto"] = "auto"  # a run keeps which
    gradient_checkpointing: bool = False
    torch_compile: bool = False
    shard: Shard = "none"
    save_steps: Count = 100
    logging_steps: Count = 1
    report_to: list[Tracker] = []
    extra: dict[str, Any] = {}

    @field_validator("bf16", mode="wrap")
    @classmethod
    def _or_auto(cls, value: Any, check: ValidatorFunctionWrapHandler) -> Any:
        try:
            return check(value)
        except ValidationError:
            raise ValueError("Input should be true, false or auto") from None

    @property
    def autocasts(self) -> bool:
        """Whether training computes in bfloat16; a run's settings have no `auto`."""
        return self.bf16 is True

    @field_validator("report_to", mode="before")
    @classmethod
    def _trackers(cls, value: Any) -> Any:
        if isinstance(value, str):
            return [] if value == "none" else [value]
        return value

    @field_validator("extra")
    @classmethod
    def _passed_on(cls, value: dict[str, Any]) -> dict[str, Any]:
        return checked_extra(value, cls.model_fields)

    @field_validator("max_steps")
    @classmethod
    def _allowed(cls, value: int) -> int:
        if value != -1 and value < 1:
            raise ValueError("Input should be at least 1, or -1 to leave it to num_train_epochs")
        return value

    @model_validator(mode="after")
    def _one_warmup(self) -> Self:
        if self.warmup_steps and self.warmup_ratio:
            raise ValueError(
                f"warmup_steps ({self.warmup_steps}) and warmup_ratio ({self.warmup_ratio:g}) both "
                "say how long the warmup is; remove one of them"
            )
        return self

    @model_validator(mode="after")
    def _falls(self) -> Self:
        if self.lr_scheduler_type == "polynomial" and self.learning_rate <= POLYNOMIAL_END:
            raise ValueError(
                f"learning_rate ({self.learning_rate}) has to be above {POLYNOMIAL_END}, where "
                "lr_scheduler_type: polynomial ends; raise it, or use linear"
            )
        self.refuse_all_warmup(self.max_steps)
        if (options := self.extra.get("lr_scheduler_kwargs")) not in (None, {}):
            check_scheduler(self.lr_scheduler_type, self.learning_rate, options)
        return self

    def refuse_all_warmup(self, steps: int) -> None:
        """Raises a ValueError where the polynomial schedule of so many steps divides by zero."""
        if self.lr_scheduler_type == "polynomial" and self.warmup(steps) == steps:
            name = "warmup_ratio" if self.warmup_ratio else "warmup_steps"
            raise ValueError(
                f"{name} ({getattr(self, name):g}) is the number of all steps, which leaves none "
                "to lr_scheduler_type: polynomial; lower it"
            )

    def warmup(self, steps: int) -> int:
        """Returns the number of warmup steps of a phase with so many steps."""
        # As in Trainer. A float's own rounding must not add a step: 0.07 · 100 is above 7.
        return self.warmup_steps or math.ceil(round(self.warmup_ratio * steps, 6))


def effective(shard: Shard) -> Shard:
    """Returns what is shared out here: nothing by a single process."""
    return shard if processes.count() > 1 else "none"
