"""Selection of the linear layers of a backbone that carry blocks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from retain.backbone.probe import ROWS, Calls, linear_calls
from retain.errors import RetainError

USUAL = (
    ("q_proj", "v_proj"),
    ("query", "value"),
    ("q", "v"),
    ("query_proj", "value_proj"),
    ("Wq", "Wv"),
    ("query_key_value",),
    ("qkv_proj",),
    ("c_attn",),
    ("Wqkv",),
    ("q_a_proj", "q_b_proj"),
    ("kv_proj",),
    ("in_proj",),
    ("o_proj",),
)
"""Names that classes give to what computes queries and values, or takes their place."""


def target_linears(
    model: PreTrainedModel, wanted: Sequence[str] | None
) -> tuple[dict[str, nn.Linear], list[str]]:
    """Returns the layers to adapt by full name, and the name endings that selected them.

    Layers that a text never reaches, such as those of a vision tower, are left out.

    Args:
        model: the backbone.
        wanted: endings such as `q_proj`; None uses peft's table for the architecture, and `USUAL`
            where that has no entry.

    Raises:
        RetainError: if there is no default, an ending matches nothing, or a layer would not get
            (rows, positions, width), if it is called at all; the message lists the endings that can
            be adapted.
    """
    calls = linear_calls(model)
    head = model.get_output_embeddings()
    linears = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head and name in calls
    }
    unfit = {name: problem for name in linears if (problem := _problem(calls[name]))}
    candidates = sorted({_ending(name) for name in linears} - {_ending(name) for name in unfit})
    choice = f"choose from {', '.join(candidates)}"
    endings = wanted or _default(model.config.model_type, linears, candidates)
    if not endings:
        raise RetainError(
            f"method.target_modules: there is no default for '{model.config.model_type}'; {choice}"
        )
    for ending in endings:
        if not any(_has_ending(name, ending) for name in linears):
            raise RetainError(
                f"method.target_modules: no linear layer '{ending}' in this model; {choice}"
            )
    chosen = {
        name: module
        for name, module in linears.items()
        if any(_has_ending(name, ending) for ending in endings)
    }
    for name in chosen:
        if name in unfit:
            raise RetainError(f"method.target_modules: layer '{name}' {unfit[name]}; {choice}")
    return chosen, sorted(endings)


def _default(
    kind: str, linears: Mapping[str, nn.Module], candidates: Sequence[str]
) -> list[str] | None:
    """Returns the default endings for an architecture; peft has some as a regular expression."""
    table = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(kind, [])
    if isinstance(table, str):
        table = sorted({_ending(name) for name in linears if re.fullmatch(table, name)})
    usual = next((pair for pair in (table, *USUAL) if {*pair} and {*pair} <= {*candidates}), None)
    return list(usual or table) or None


def _ending(name: str) -> str:
    return name.rpartition(".")[2]


def _has_ending(name: str, ending: str) -> bool:
    return name == ending or name.endswith(f".{ending}")


def _problem(calls: Calls) -> str:
    """Returns why a layer that is used like this cannot be adapted; empty if it can."""
    if calls.is_read or not calls.shapes:
        return "is not only called: its weight is read, and a block would be left out"
    for shape in calls.shapes:
        if len(shape) != 3 or ROWS not in shape[:2]:
            return (
                f"gets input of shape {shape} for {ROWS} rows, expected (batch, sequence, dim): "
                "expert layers of a mixture of experts, and others like them, are not supported"
            )
    return ""


def positions_first(model: PreTrainedModel, name: str) -> bool:
    """Whether a layer's input is (positions, rows, width), as in LED."""
    return any(shape[0] != ROWS for shape in linear_calls(model)[name].shapes)


def shape(linear: nn.Linear) -> tuple[int, int]:
    """Returns (d_in, d_out) of a linear layer; GPT-2's Conv1D stores its weight transposed."""
    if isinstance(linear, Conv1D):
        rows, columns = linear.weight.shape
        return rows, columns
    return linear.in_features, linear.out_features  # a quantised weight has another shape
