"""Unfinished work on disk: sealed when it is whole, so that a later sitting can tell.

Trainer neither syncs nor checks what it writes. A seal lists the checksums of a folder's synced
files and is written last; a folder without one, or with a file that differs, was cut off by a kill
or damaged since, and is made again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from retain import processes
from retain.errors import RetainError, first_line
from retain.files import checksum, read_json, remove_folders, sync, write_json, writing

SEAL = "sealed.json"
TORCH_WRITES = ("inline_container", "iostream error")
"""What torch.save says in its RuntimeError where the disk refuses."""


def seal(folder: Path) -> None:
    """Marks a folder of files as whole.

    Raises:
        RetainError: when the disk refuses.
    """
    sums = {}
    with processes.first_alone() as seals, writing(folder):
        if seals:
            files = [path for path in sorted(folder.iterdir()) if path.name != SEAL]
            for path in (*files, folder.parent):
                sync(path)
            sums = {path.name: checksum(path) for path in files}
    write_json(folder / SEAL, sums)  # by the first process, too


def is_sealed(folder: Path) -> bool:
    """Whether a folder is whole, every file as it was when it was sealed."""
    try:
        sums = read_json(folder / SEAL)
        return all(checksum(folder / name) == known for name, known in sums.items())
    except (RetainError, OSError, AttributeError):
        return False


@contextmanager
def saving(folder: Path, step: int) -> Iterator[None]:
    """Trainer writes the checkpoint of a step in here; it is sealed before the one before it goes.

    Raises:
        RetainError: when the disk refuses.
    """
    path = folder / f"checkpoint-{step}"
    with writing(path):
        try:
            yield
        except RuntimeError as error:
            if not any(words in str(error) for words in TORCH_WRITES):
                raise
            raise OSError(first_line(error)) from None
    seal(path)
    keep_only(folder, path)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a phase, if there is one."""
    return next((path for path in reversed(checkpoints(folder)) if is_sealed(path)), None)


def keep_only(folder: Path, kept: Path | None) -> None:
    """Deletes a phase's other checkpoints; all processes have to come here."""
    remove_folders(*(path for path in checkpoints(folder) if path != kept))


def checkpoints(folder: Path) -> list[Path]:
    """A phase's checkpoints, whole or not, in the order of their steps."""
    return sorted(folder.glob("checkpoint-*"), key=step_of)


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which it was taken."""
    return int(checkpoint.name.rpartition("-")[2])
