"""What a method's memory will take, told and checked before anything is trained."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import psutil

from retain.errors import RetainError
from retain.methods import Method
from retain.progress import Progress
from retain.tasks import Task


def check_room(
    method: Method, tasks: Sequence[Task], batch_size: int, folder: Path, progress: Progress
) -> None:
    """Says what learning these tasks takes beside the model.

    Args:
        method: estimates it, task by task.
        tasks: what is to be learned.
        batch_size: rows of a batch that are in memory at once.
        folder: the run's.
        progress: is told.

    Raises:
        RetainError: when it does not fit on the disk of the run, or in memory.
    """
    needs = [method.footprint(task, batch_size) for task in tasks]
    disk = sum(need.kept for need in needs) + max((need.passing for need in needs), default=0)
    ram = max((need.ram for need in needs), default=0)
    if not disk and not ram:
        return
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    progress.message(f"memory: about {size(disk)} on disk, {size(ram)} in RAM")
    for need, free, where in (
        (disk, shutil.disk_usage(place).free, f"on the disk of {folder}"),
        (ram, psutil.virtual_memory().available, "in RAM"),
    ):
        if need > free:
            raise RetainError(
                f"method: its memory needs about {size(need)} {where}, but {size(free)} are free; "
                f"lower {method.lowers_footprint}"
            )


def size(count: float) -> str:
    """Bytes in the largest unit that leaves at least 1."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
