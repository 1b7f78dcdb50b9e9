"""`training.extra`: further names of transformers.TrainingArguments, checked before training."""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Annotated, Any

import torch
from pydantic import Field, TypeAdapter, ValidationError
from transformers import TrainingArguments, get_scheduler
from transformers.utils import is_torch_tf32_available

from retain.errors import first_line
from retain.training.phase import MOST

PASSED_ON = (
    "ddp_bucket_cap_mb",
    "ddp_static_graph",
    "ddp_timeout",
    "full_determinism",
    "log_on_each_node",
    "logging_first_step",
    "lr_scheduler_kwargs",
    "restore_callback_states_from_checkpoint",
    "tf32",
    "torch_empty_cache_steps",
    "trackio_bucket_id",
    "trackio_space_id",
    "trackio_static_space_id",
)
"""The names that Trainer may get as they are.

Of the others retain sets some itself (where checkpoints lie, how many steps there are), computes
some itself (loss, batches, evaluation), where they would have no effect, and cannot resume under
the rest (fp16's loss scale, auto_find_batch_size).
"""

POSITIVE = ("ddp_bucket_cap_mb", "ddp_timeout", "torch_empty_cache_steps")
"""The numbers among them. TrainingArguments itself checks them late or not at all."""

LENGTH = 100
"""Steps of the training for which a learning-rate schedule is tried out."""


def checked_extra(extra: Mapping[str, Any], fields: Collection[str]) -> dict[str, Any]:
    """Checks names, types and ranges of `training.extra`.

    Args:
        extra: values by the names of TrainingArguments.
        fields: the names that are fields of `training` itself.

    Returns:
        The values, of the types that TrainingArguments declares.

    Raises:
        ValueError: names the first that is not allowed, with the closest names of an unknown one.
    """
    types = typing.get_type_hints(TrainingArguments)
    names = {field.name for field in dataclasses.fields(TrainingArguments)}
    allowed = ", ".join(PASSED_ON)
    checked = {}
    for name, value in extra.items():
        if name in fields:
            raise ValueError(f"'{name}' is a field of training itself; write training.{name}")
        if name not in names:
            close = ", ".join(get_close_matches(name, sorted(names), cutoff=0.5)) or allowed
            raise ValueError(f"TrainingArguments has no '{name}'; the closest names are {close}")
        if name not in PASSED_ON:
            raise ValueError(
                f"'{name}' is retain's own to set, or has no effect in it; remove it (extra takes "
                f"{allowed})"
            )
        kind: Any = types[name]
        if name in POSITIVE:
            kind = Annotated[kind, Field(gt=0, le=MOST)]
        try:
            json.dumps(value, allow_nan=False)  # as it will be written
        except (TypeError, ValueError):
            raise ValueError(
                f"'{name}': give texts, lists, objects and finite numbers of plain Python"
            ) from None
        try:
            checked[name] = TypeAdapter(kind).validate_python(value)
        except ValidationError as error:
            raise ValueError(f"'{name}': {error.errors()[0]['msg']}") from None
    if checked.get("tf32") and not is_torch_tf32_available():
        raise ValueError("'tf32': this machine has no GPU that computes in TF32; remove it")
    return checked


def check_scheduler(kind: str, learning_rate: float, options: Any) -> None:
    """Checks `lr_scheduler_kwargs` by trying out the learning-rate schedule that they are for.

    Raises:
        ValueError: says what transformers says, or at which step the learning rate is not valid.
    """
    where = "extra 'lr_scheduler_kwargs'"
    if kind.startswith("constant"):
        raise ValueError(f"{where}: the schedule '{kind}' takes none; remove lr_scheduler_kwargs")
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=learning_rate)
    at = ""
    try:
        schedule = get_scheduler(kind, optimizer, 0, LENGTH, options)
        for step in range(LENGTH + 1):  # after its last step, Trainer asks for one more
            at = f", at step {step} of {LENGTH}"
            rate = learning_rate * schedule.lr_lambdas[0](step)
            if not (math.isfinite(rate) and rate >= 0):
                raise ValueError(f"the learning rate is {rate}")
    except Exception as error:  # a name or value that the schedule does not take; of many kinds
        raise ValueError(f"{where}: {first_line(error)}{at}") from None
