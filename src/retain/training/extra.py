"""`training.extra`: further names of transformers.TrainingArguments, checked before training."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from transformers import TrainingArguments, get_scheduler
from transformers.utils import is_torch_tf32_available

from retain.errors import first_line

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


def checked_extra(extra: Mapping[str, Any], fields: Collection[str]) -> dict[str, Any]:
    """Checks names and types of `training.extra`.

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
        try:
            checked[name] = TypeAdapter(types[name]).validate_python(value)
        except ValidationError as error:
            raise ValueError(f"'{name}': {error.errors()[0]['msg']}") from None
    if checked.get("tf32") and not is_torch_tf32_available():
        raise ValueError("'tf32': this machine has no GPU that computes in TF32; remove it")
    return checked


def check_scheduler(kind: str, learning_rate: float, options: Any) -> None:
    """Checks `lr_scheduler_kwargs` by building the learning-rate schedule that they are for.

    Raises:
        ValueError: says what transformers says.
    """
    if kind.startswith("constant"):
        raise ValueError(f"extra 'lr_scheduler_kwargs': the schedule '{kind}' takes none")
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=learning_rate)
    try:
        get_scheduler(kind, optimizer, 0, 1, options)
    except Exception as error:  # a name or value that the schedule does not take; of many kinds
        raise ValueError(f"extra 'lr_scheduler_kwargs': {first_line(error)}") from None
