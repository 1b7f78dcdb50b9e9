"""Selection of the linear layers of a backbone that carry blocks."""

from __future__ import annotations

from collections.abc import Sequence

from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from retain.errors import RetainError


def target_linears(
    model: PreTrainedModel, wanted: Sequence[str] | None
) -> tuple[dict[str, nn.Linear], list[str]]:
    """Returns the layers to adapt by full name, and the name endings that selected them.

    Args:
        model: the backbone.
        wanted: endings such as `q_proj`; None uses peft's table for the architecture.

    Raises:
        RetainError: if the table lacks the architecture or an ending matches nothing; the message
            lists the endings of the model's linear layers.
    """
    linears = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not model.get_output_embeddings()
    }
    kind = model.config.model_type
    endings = wanted or TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(kind)
    candidates = sorted({name.rpartition(".")[2] for name in linears})
    if not endings:
        raise RetainError(
            f"method.target_modules: peft has no default for '{kind}'; "
            f"choose from {', '.join(candidates)}"
        )
    chosen = {
        name: module
        for name, module in linears.items()
        if any(name == ending or name.endswith(f".{ending}") for ending in endings)
    }
    for ending in endings:
        if not any(name == ending or name.endswith(f".{ending}") for name in chosen):
            raise RetainError(
                f"method.target_modules: no linear layer '{ending}' in this model; "
                f"choose from {', '.join(candidates)}"
            )
    return chosen, sorted(endings)


def shape(linear: nn.Linear) -> tuple[int, int]:
    """Returns (d_in, d_out) of a linear layer; GPT-2's Conv1D stores its weight transposed."""
    rows, columns = linear.weight.shape
    return (rows, columns) if isinstance(linear, Conv1D) else (columns, rows)
