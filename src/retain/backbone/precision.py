"""What number formats a backbone's weights may have, for what is trained."""

from __future__ import annotations

import torch

from retain.errors import RetainError

HALF = ("bfloat16", "float16")
SMALLER = (
    "a smaller backbone (a frozen one also with backbone.dtype=bfloat16 or "
    "backbone.quantization=nf4)"
)
"""What takes less memory, for an error's advice."""


def chosen_dtype(dtype: str, device: str | None, trains_all: bool) -> str:
    """Returns `backbone.dtype`, and what `auto` stands for on this machine.

    Args:
        dtype: the setting.
        device: `backbone.device`; None is a GPU if there is one.
        trains_all: whether the backbone's own weights are trained.
    """
    if dtype != "auto":
        return dtype
    gpu = torch.cuda.is_available() and (device or "cuda").startswith("cuda")
    fast = gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if fast and not trains_all else "float32"


def refuse_full_fine_tuning(dtype: str, quantized: bool) -> None:
    """Refuses formats in which the weights of a whole model do not learn.

    Args:
        dtype: of the weights.
        quantized: whether some of them are in 4 or 8 bits.

    Raises:
        RetainError: if they are, or in half precision, where updates at usual learning rates round
            to zero.
    """
    if quantized:
        raise RetainError(
            "backbone: full fine-tuning does not work in 4 or 8 bits, which are frozen; take it "
            "without quantization, or train a LoRA (method.tune: lora; seqlora instead of seqft)"
        )
    if dtype in HALF:
        raise RetainError(
            f"backbone.dtype: full fine-tuning does not work in {dtype}, where small steps round "
            "to zero; set it to float32 (training.bf16: true computes in bfloat16), or train a "
            "LoRA (method.tune: lora; seqlora instead of seqft)"
        )
