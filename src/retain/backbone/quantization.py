"""Backbones whose linear layers are stored in 4 or 8 bits, by bitsandbytes.

NF4 has 16 values at the quantiles of a normal distribution, scaled per block of 64 weights; the
scales are quantised too (QLoRA, arXiv 2305.14314, section 3). int8 has one scale per output row,
and computes activations above a threshold apart (LLM.int8(), arXiv 2208.07339). The weights are
frozen; blocks beside them take gradients through them.
"""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from retain.errors import RetainError

LAYERS = ("Linear4bit", "Linear8bitLt")
"""The classes of bitsandbytes that take a linear layer's place."""
PACKAGE = "bitsandbytes"
NO_KERNEL = "Failed to load CPU gemm_4bit_forward from kernels-community"
"""How a line begins that bitsandbytes logs when it is imported on a CPU with AVX512-BF16.

That kernel is for what `prepare` switches off, and peft imports bitsandbytes wherever it is
installed: so the line would stand above the output of every command.
"""
logging.getLogger(f"{PACKAGE}.backends.cpu.ops").addFilter(
    lambda record: not str(record.msg).startswith(NO_KERNEL)
)


def options(kind: str | None, stored: Any, dtype: str, device: str) -> dict[str, Any]:
    """Returns what `from_pretrained` needs for a quantised model; nothing for any other.

    Args:
        kind: `backbone.quantization`.
        stored: the checkpoint's own `quantization_config`; None if it is not quantised.
        dtype: of what is computed, and of all other weights.
        device: where the model is loaded to.

    Raises:
        RetainError: if the checkpoint is quantised by something else, or already and again, the
            package is not installed, or it does not support the device.
    """
    if kind is None and stored is None:
        return {}
    if stored is not None:
        refuse_stored(stored, kind)
    if find_spec(PACKAGE) is None:
        raise RetainError(
            "backbone: 4 and 8 bits need bitsandbytes; pip install 'retain[quantization]', or take "
            "a backbone without"
        )
    import bitsandbytes

    supported = sorted(bitsandbytes.supported_torch_devices)
    if torch.device(device).type not in supported:
        raise RetainError(
            f"backbone.device '{device}': bitsandbytes has no 4 and 8 bits there, only on "
            f"{', '.join(supported)}; leave backbone.quantization out"
        )
    if kind is None:
        return {}
    return {"quantization_config": BitsAndBytesConfig(**_settings(kind, dtype))}


def refuse_stored(stored: Any, kind: str | None) -> None:
    """Refuses a checkpoint that is quantised by something else, or already and again by `kind`.

    Args:
        stored: its `quantization_config`.
        kind: `backbone.quantization`.
    """
    values = stored if isinstance(stored, dict) else stored.to_dict()
    method = getattr(values.get("quant_method"), "value", values.get("quant_method"))
    # Older checkpoints of bitsandbytes do not name it.
    is_older = method is None and (values.get("load_in_4bit") or values.get("load_in_8bit"))
    if method != PACKAGE and not is_older:
        by = f"quantised by {method}" if method else "quantised, and does not say by what"
        raise RetainError(
            f"backbone: its checkpoint is {by}, through which retain does not train; take one "
            "without, and set backbone.quantization"
        )
    if kind is not None:
        raise RetainError(
            "backbone.quantization: the checkpoint is quantised already; leave it out"
        )


def _settings(kind: str, dtype: str) -> dict[str, Any]:
    """Returns the arguments of `BitsAndBytesConfig`."""
    if kind == "int8":
        return {"load_in_8bit": True}
    return {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": dtype,
    }


def bytes_per_weight(kind: str) -> float:
    """Returns the bytes that a weight takes, with its share of scales, for memory estimates.

    NF4 has a scale of 1 byte for 64 weights, and 4 more bytes for 256 scales.
    """
    return 1.0 if kind == "int8" else 0.5 + (1 + 4 / 256) / 64


def loading_code(kind: str | None, dtype: str) -> tuple[list[str], str]:
    """Returns lines of Python that import what loads such a model, and the arguments to add."""
    if kind is None:
        return [], ""
    values = ", ".join(f"{name}={value!r}" for name, value in _settings(kind, dtype).items())
    imports = ["import torch", "from transformers import BitsAndBytesConfig"]
    quantised = f"quantization_config=BitsAndBytesConfig({values})"
    return imports, f", dtype=torch.{dtype}, {quantised}"


def is_quantized(model: nn.Module) -> bool:
    """Whether some of a model's linear layers are stored in 4 or 8 bits."""
    return any(type(part).__name__ in LAYERS for part in model.modules())


def kind_of(model: PreTrainedModel) -> str | None:
    """Returns the `backbone.quantization` that a loaded model was made with.

    None stands for no quantization, and for a checkpoint that has its own.
    """
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None or quantizer.pre_quantized:
        return None
    return "int8" if getattr(model, "is_loaded_in_8bit", False) else "nf4"


def prepare(model: PreTrainedModel) -> None:
    """Makes quantised layers pass gradients after evaluation, and compute in the model's dtype."""
    for part in model.modules():
        if type(part).__name__ == "Linear4bit":
            # On a CPU with AVX512-BF16, bitsandbytes 0.50 packs the weights anew in evaluation.
            # What is trained through them afterwards has no gradient.
            part.support_avx512bf16_for_cpu = False
            part.compute_dtype = model.dtype  # a checkpoint may name another
            part.compute_type_is_set = True
    if is_quantized(model):
        # It warns at every call that 8 bits are computed from float16.
        logging.getLogger(f"{PACKAGE}.autograd._functions").setLevel(logging.ERROR)


def dequantize(model: PreTrainedModel) -> None:
    """Replaces quantised layers by plain ones with the weights that they stand for, in place.

    transformers' own leaves GPT-2's layers transposed.
    """
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight  # loads the package

    for name, part in list(model.named_modules()):
        if type(part).__name__ not in LAYERS:
            continue
        state = getattr(part, "state", None)  # of 8 bits, where the scales are after a forward
        weight = dequantize_bnb_weight(part.weight, state).to(model.dtype)  # (d_out, d_in)
        with torch.device("meta"):
            if part.source_cls is Conv1D:
                plain: nn.Module = Conv1D(part.out_features, part.in_features)
                weight = weight.T.contiguous()
            else:
                plain = nn.Linear(part.in_features, part.out_features, part.bias is not None)
        plain.weight = nn.Parameter(weight, requires_grad=False)
        plain.bias = part.bias
        model.set_submodule(name, plain.train(part.training))
    if (quantizer := getattr(model, "hf_quantizer", None)) is not None:
        quantizer.remove_quantization_config(model)
    # What a quantised checkpoint went through when it was loaded would be undone on saving.
    if (conversions := getattr(model, "_weight_conversions", None)) is not None:
        model._weight_conversions = [
            conversion
            for conversion in conversions
            if not any(
                type(step).__module__.endswith(f".{PACKAGE}")
                for step in getattr(conversion, "operations", ())
            )
        ]
    for name in ("is_loaded_in_4bit", "is_loaded_in_8bit"):
        if hasattr(model, name):
            delattr(model, name)
