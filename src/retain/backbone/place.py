"""What a backbone's name stands for: a path, or a hub's id."""

from __future__ import annotations

import os
import re
from pathlib import Path

from retain.errors import RetainError
from retain.system.paths import expanded, is_special

HUB_ID = re.compile(r"\w[\w.-]{0,95}(/\w[\w.-]{0,95})?", re.ASCII)
"""What a hub may be asked for. Any other name is a path: `./x`, `~/x`, `/x`, `x/y/z`."""


def path_of(name: str) -> Path:
    """Returns the file or folder that a backbone's name stands for; a hub id's does not exist.

    Raises:
        RetainError: when the name can only be a path and nothing is there, or what is there has
            files that are none, which might never end.
    """
    try:
        path = expanded(name)
    except ValueError as error:
        raise RetainError(f"backbone {name!r}: {error}") from None
    if not os.path.exists(path) and not HUB_ID.fullmatch(name):
        raise RetainError(
            f"backbone {name}: no such file or folder; check the path, or name a hub id such as "
            "HuggingFaceTB/SmolLM2-135M"
        )
    if os.path.isdir(path):
        for entry in path.iterdir():
            if entry.exists() and is_special(entry.stat().st_mode):
                raise RetainError(f"backbone {entry}: is no file; remove it")
    return path
