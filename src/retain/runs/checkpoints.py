"""Unfinished work on disk: marked with what it is of, and sealed when it is whole.

Trainer neither syncs nor checks what it writes. A seal lists the checksums of a folder's synced
files and is written last; a folder without one, or with a file that differs, was cut off by a kill
or damaged since, and is made again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from retain.system import processes
from retain.runs.environment import other_versions, versions
from retain.errors import RetainError, first_line
from retain.system.files import checksum, read_json, remove_folders, sync, write_json, writing
from retain.runs.records import TASK, UNFINISHED, read_record
from retain.runs.directory import RunDirectory
from retain.tasks import Task

SEAL = "sealed.json"
TORCH_WRITES = ("inline_container", "iostream error")
"""What torch.save says in its RuntimeError where the disk refuses."""


def take_up(run: RunDirectory, folder: Path, task: Task, say: Callable[[str], None]) -> None:
    """Begins a task's unfinished work, or goes on with what there is; deletes none.

    Args:
        run: is held for writing.
        folder: the task's.
        task: is about to be learned.
        say: is told what may change the numbers.

    Raises:
        RetainError: when there is work that was begun on another task, on other examples, under
            other training settings of the task's own, by another number of processes, or under
            libraries of more than another patch.
    """
    key = {
        "task": task.name,
        "training": {name: task.training[name] for name in sorted(task.training)},
        "fingerprints": task.fingerprints(),
        "processes": processes.count(),  # a step's rows are dealt out among them
        **versions(),
    }
    for found in run.unlearned():
        mark = found / UNFINISHED / TASK
        if not mark.exists():
            raise RetainError(
                f"{found}: has files that manifest.json does not list; restore the manifest that "
                "does, or delete this folder to learn the task anew"
            )
        differs = _difference(mark, key) if found == folder else f"is not on '{task.name}'"
        if differs:
            raise RetainError(
                f"{found}: its unfinished work {differs}; go on with what it was begun with, or "
                "delete this folder to learn the task anew"
            )
        if news := other_versions(read_json(mark)):
            say(f"unfinished work of {task.name} goes on, though {', '.join(news)}")
    write_json(folder / UNFINISHED / TASK, key)


def _difference(mark: Path, key: Mapping[str, Any]) -> str:
    """How unfinished work differs from what is to be learned; empty where it can go on."""
    try:
        stored = read_record(dict[str, Any], mark)
    except RetainError:
        return f"has a damaged {UNFINISHED}/{TASK}"
    differ = [
        f"{name} {stored.get(name)!r} is now {key[name]!r}"
        for name in ("task", "training", "processes")
        if stored.get(name) != key[name]
    ]
    if stored.get("fingerprints") != key["fingerprints"]:
        differ.append("its examples have changed")
    differ += other_versions(stored, patches=False)
    return f"was begun otherwise ({', '.join(differ)})" if differ else ""


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
