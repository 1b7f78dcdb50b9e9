"""Where a command may write: not onto a run's own files, and not onto a file of another kind."""

from __future__ import annotations

import os
from pathlib import Path

from retain.errors import RetainError
from retain.runs.directory import LOCK
from retain.runs.manifest import MANIFEST
from retain.runs.records import CONFIG, ENVIRONMENT, SCORES, SINGLE
from retain.system.files import remove_left
from retain.system.paths import refuse_special_target

OWN = {MANIFEST, CONFIG, ENVIRONMENT, SCORES, SINGLE, LOCK, "tasks", "compact"}
"""Names in a run's folder that are the run's."""

PAGE = b"<!DOCTYPE html>"
PICTURE = b"\x89PNG"
COMPARE_CSV = b"run,method,seed,order,"
SWEEP_CSV = b"run,variant,seed,status,"
SWEEP_JSON = b'{\n "files": '
"""How the files begin that commands write: a file that begins otherwise is somebody else's."""


def check_outputs(*outputs: tuple[Path | None, bytes]) -> None:
    """Raises RetainError for an output that would destroy what is there.

    What a killed command has left of an output is deleted.

    Args:
        outputs: paths that are to be written, and how what was written there before would begin.
    """
    taken: dict[str, Path] = {}
    for path, begins in outputs:
        if path is None:
            continue
        if path.name in ("", "..") or path.is_dir():
            raise RetainError(f"{path}: cannot be written (it is a folder); choose another path")
        refuse_special_target(path)
        place = os.path.realpath(path)
        if place in taken:
            raise RetainError(f"{path}: is named for two outputs; choose another path for one")
        taken[place] = path
        if (run := run_around(path)) is not None and _is_own(Path(place), run):
            raise RetainError(f"{path}: is a file of the run {run}; choose another path")
        if path.is_file() and path.stat().st_size and not _begins(path, begins):
            raise RetainError(
                f"{path}: exists, and is of another kind than what would replace it; choose "
                "another path, or move it away"
            )
        remove_left(path)


def check_folder(folder: Path) -> None:
    """Raises RetainError for an output folder that lies in a run."""
    if (run := run_around(folder)) is not None:
        raise RetainError(f"{folder}: lies in the run {run}; choose another folder")


def run_around(path: Path) -> Path | None:
    """Returns the innermost run that a path lies in; None where there is none."""
    for folder in Path(os.path.realpath(path)).parents:
        if (folder / MANIFEST).is_file() and (folder / ENVIRONMENT).is_file():
            return folder
    return None


def _is_own(place: Path, run: Path) -> bool:
    return place.relative_to(run).parts[0] in OWN


def _begins(path: Path, begins: bytes) -> bool:
    with open(path, "rb") as file:
        return file.read(len(begins)) == begins
