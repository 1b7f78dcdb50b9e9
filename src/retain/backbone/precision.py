"""What number formats a backbone's weights may have, for what is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F

from retain.errors import RetainError, first_line

HALF = ("bfloat16", "float16")
SMALLER = (
    "a smaller backbone (a frozen one also with backbone.dtype=bfloat16 or "
    "backbone.quantization=nf4)"
)
"""What takes less memory, for an error's advice."""


def device_of(device: str | None) -> str:
    """Returns `backbone.device`, and for None the GPU if there is one, else the CPU."""
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def chosen_dtype(dtype: str, device: str | None, trains_all: bool) -> str:
    """Returns `backbone.dtype`, and what `auto` stands for on this machine.

    Args:
        dtype: the setting.
        device: `backbone.device`; None is a GPU if there is one.
        trains_all: whether the backbone's own weights are trained.
    """
    if dtype != "auto":
        return dtype
    return "bfloat16" if _gpu_has_bfloat16(device) and not trains_all else "float32"


def chosen_autocast(
    bf16: bool | Literal["auto"], dtype: str, device: str | None, trains_all: bool
) -> bool:
    """Returns `training.bf16`, and what `auto` stands for on this machine.

    Args:
        bf16: the setting.
        dtype: of the backbone's weights, not `auto`.
        device: `backbone.device`; None is a GPU if there is one.
        trains_all: whether the backbone's own weights are trained.
    """
    if bf16 != "auto":
        return bf16
    return trains_all and dtype == "float32" and _gpu_has_bfloat16(device)


def _gpu_has_bfloat16(device: str | None) -> bool:
    """Whether the device is a GPU that computes in bfloat16, rather than emulating it."""
    gpu = torch.cuda.is_available() and device_of(device).startswith("cuda")
    return gpu and torch.cuda.is_bf16_supported(including_emulation=False)


def told(dtype: str, autocasts: bool, device: str | None, trains_all: bool) -> str:
    """Returns one line on the formats that a new run computes in."""
    line = f"weights in {dtype}, on {device_of(device)}"
    on_cpu = device_of(device) == "cpu"
    fast = _cpu_multiplies_bfloat16() if on_cpu else None
    if autocasts:
        line += ", computed in bfloat16"
    elif dtype == "float32" and fast:
        faster = "training.bf16=true" if trains_all else "backbone.dtype=bfloat16"
        line += f"; this CPU computes bfloat16 faster: --set {faster}"
    if fast is False and (autocasts or dtype == "bfloat16"):
        faster = "training.bf16=false" if autocasts else "backbone.dtype=float32"
        line += f"; this CPU computes float32 faster, by up to fifty times: --set {faster}"
    return line


def _cpu_multiplies_bfloat16() -> bool | None:
    """Whether the CPU has instructions for it; None where torch does not tell. For advice only."""
    has: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    if "avx512_bf16" not in has:
        return None
    return bool(has["avx512_bf16"] or has.get("amx_bf16"))


def refuse_lacking(dtype: str, device: str | None, setting: str) -> None:
    """Refuses a format that a device does not compute in; a layer of a few numbers is tried.

    Args:
        dtype: the format.
        device: `backbone.device`; None is a GPU if there is one.
        setting: what chose the format, for the error.

    Raises:
        RetainError: if the device lacks it.
    """
    where = device_of(device)
    try:
        x = torch.ones(2, 4, 8, device=where)
    except (RuntimeError, AssertionError):
        return  # what is wrong with a device is told before a model is loaded there
    reason = ""
    if dtype == "bfloat16" and where.startswith("cuda") and not _gpu_has_bfloat16(device):
        reason = "it would emulate it"
    try:
        x = x.to(getattr(torch, dtype)).requires_grad_()
        x = F.gelu(F.layer_norm(F.scaled_dot_product_attention(x, x, x), (8,)) @ x.mT)
        x.softmax(-1).square().sum().backward()
    except RuntimeError as error:  # torch has no kernel
        reason = first_line(error)
    if reason:
        raise RetainError(
            f"{setting}: {where} does not compute in {dtype} ({reason}); "
            + ("leave it out" if setting == "training.bf16" else "take another, or auto")
        )


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
