"""Which linear layers of a backbone carry blocks."""

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
    """The layers to adapt by full name, and the name endings that chose them.

    Args:
        model: the backbone.
        wanted: endings such as `q_proj`; None takes peft's table for the architecture.

    Raises:
        RetainError: when the table does not know the architecture or an ending matches nothing;
            it lists the candidates found in the model.
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
            f"choose among {', '.join(candidates)}"
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
                f"choose among {', '.join(candidates)}"
            )
    return chosen, sorted(endings)


def shape(linear: nn.Linear) -> tuple[int, int]:
    """(d_in, d_out) of a linear layer; GPT-2's Conv1D keeps its weight transposed."""
    rows, columns = linear.weight.shape
    return (rows, columns) if isinstance(linear, Conv1D) else (columns, rows)
