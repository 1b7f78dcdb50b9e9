"""What a run was made with: libraries and backbone; and what has changed since."""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import version
from pathlib import Path

from torch import nn

from retain.errors import RetainError

LIBRARIES = ("retain", "torch", "transformers", "peft", "accelerate", "tokenizers")
SAMPLED = 1024
"""Numbers of each tensor that the fingerprint reads; all of a large model would take minutes."""


def versions() -> dict[str, str]:
    """Of Python and of the libraries that numbers depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


def fingerprint(model: nn.Module) -> str:
    """Tells models apart: a sha256 of the tensors' names and shapes, and of numbers across each."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        values = tensor.flatten()[:: max(1, tensor.numel() // SAMPLED)]
        digest.update(values.cpu().double().numpy().tobytes())
    return digest.hexdigest()


def refuse_other_backbone(stored: dict[str, str], found: str, run: Path, name: str) -> None:
    """Raises RetainError when the backbone is not the one that a run has learned on."""
    if stored.get("backbone", found) != found:
        news = changes(stored)
        raise RetainError(
            f"{run}: learned on other weights than backbone '{name}' now has; restore it, or start "
            f"another run{f' ({news})' if news else ''}"
        )


def changes(stored: dict[str, str]) -> str:
    """Libraries that are of other versions than the run was begun with, in a sentence or empty."""
    now = versions()
    differ = [
        f"{name} {stored[name]} is now {now[name]}"
        for name in now
        if name in stored and stored[name] != now[name]
    ]
    return f"begun with other versions: {', '.join(differ)}; numbers may differ" if differ else ""
