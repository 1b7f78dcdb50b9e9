"""The optimizers that training offers, what each keeps, and what it needs.

`adamw_torch_fused`, the default as in transformers, is AdamW in one kernel: faster, and other than
`adamw_torch` by rounding.
`paged_adamw_8bit` keeps its moments in 8 bits (arXiv 2110.02861), in pages that leave a full GPU
for the host's memory (arXiv 2305.14314); on a CPU there are no pages.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

from retain.errors import RetainError

Optimizer = Literal["adamw_torch", "adamw_torch_fused", "paged_adamw_8bit", "adafactor", "sgd"]
STATE: dict[Optimizer, float] = {
    "adamw_torch": 2,
    "adamw_torch_fused": 2,
    "paged_adamw_8bit": 0.5,
    "adafactor": 0,
    "sgd": 0,
}
"""Bytes that an optimizer keeps per byte of float32 parameters.

Adafactor keeps only row and column means. Of the 8-bit one, tensors below 4,096 numbers, which keep
32 bits, and the scales of 256 numbers each, are left out.
"""


def require_installed(optimizer: Optimizer) -> None:
    """Raises a RetainError if the optimizer's package is not installed."""
    if optimizer == "paged_adamw_8bit" and find_spec("bitsandbytes") is None:
        raise RetainError(
            f"training.optim: {optimizer} needs bitsandbytes; pip install 'retain[quantization]', "
            "or take adamw_torch_fused"
        )
