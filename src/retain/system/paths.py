"""Paths as they are given; those that lead nowhere, or to what is no file, are refused."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from retain.errors import RetainError

SYSTEM_FOLDERS = ("/dev/fd", "/proc", "/sys")
"""Their entries are the kernel's, and cannot be replaced."""


def expanded(text: str) -> Path:
    """Returns a path that was given as a text; `~` is a home, as in shells.

    Raises:
        ValueError: when the text is empty, has a null character, or names a user who is not there.
    """
    if not text.strip():
        raise ValueError("the path is empty; name a file or folder")
    if "\0" in text:
        raise ValueError("a path has no null character; correct it")
    full = os.path.expanduser(text)
    if full.startswith("~"):
        user = text.partition("/")[0]
        raise ValueError(f"'{user}' is nobody's home; write ./{user} for such a name")
    path = Path(full)
    return Path(os.path.abspath(path)) if str(path).startswith("~") else path  # of ./~x


def refuse_special(path: Path) -> None:
    """Raises RetainError for a device, a socket or a named pipe, which might never end.

    A shell's `<(command)` is a pipe without a name, and passes.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return  # whoever opens it says why
    unnamed_pipe = stat.S_ISFIFO(mode) and not os.path.exists(os.path.realpath(path))
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or unnamed_pipe):
        raise RetainError(f"{path}: is {_kind(mode)}, and no file; name a file")


def refuse_special_target(path: Path) -> None:
    """Raises RetainError for a path that is to be written, and is none of a file or a new one.

    A file is replaced when it is written: a device would be gone.
    """
    folder = os.path.realpath(path.parent)
    if folder == "/dev" or any(f"{folder}/".startswith(f"{name}/") for name in SYSTEM_FOLDERS):
        raise RetainError(
            f"{path}: cannot be written (its folder is of the system); choose another path"
        )
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise RetainError(f"{path}: cannot be written (it is {_kind(mode)}); choose another path")


def is_special(mode: int) -> bool:
    """Whether a file's mode is of a device, a socket or a pipe."""
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode))


def _kind(mode: int) -> str:
    if stat.S_ISFIFO(mode):
        return "a pipe"
    return "a socket" if stat.S_ISSOCK(mode) else "a device"
