"""Unfinished work on disk: marked with its task and settings, and sealed when it is complete.

Trainer neither syncs nor checks what it writes. A seal lists the checksums of a folder's synced
files and is written last. A folder without a seal, or with a file that differs, was cut off by a
kill or damaged since; its work is done again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from retain.errors import RetainError, first_line
from retain.runs.directory import RunDirectory
from retain.runs.environment import other_versions, versions
from retain.runs.records import TASK, UNFINISHED, read_record
from retain.system import processes
from retain.system.files import checksum, read_json, remove_folders, sync, write_json, writing
from retain.tasks import Task

SEAL = "sealed.json"
TORCH_WRITES = ("inline_container", "iostream error")
"""Words of the RuntimeError that torch.save raises for a write error of the disk."""


def take_up(
    run: RunDirectory,
    folder: Path,
    task: Task,
    training: Mapping[str, Any],
    shard: str,
    say: Callable[[str], None],
) -> None:
    """Marks a task's unfinished work as begun, or checks that existing work can be continued.

    Nothing is deleted.

    Args:
        run: locked for writing.
        folder: the task's folder.
        task: the task that is about to be learned.
        training: the task's own training settings, but for those that may change meanwhile.
        shard: what the processes share out, on which a checkpoint's files depend.
        say: receives a message on what may change the numbers.

    Raises:
        RetainError: when there is work that was begun on another task, on other examples, under
            other training settings of the task's own, by another number of processes or with other
            shares of theirs, or under libraries that differ by more than a patch version.
    """
    key = {
        "task": task.name,
        "training": dict(sorted(training.items())),
        "fingerprints": task.fingerprints(),
        "processes": processes.count(),  # they share out the rows of each step
        "shard": shard,
        **versions(),
    }
    for begun in run.unlearned():
        mark = begun / UNFINISHED / TASK
        if not mark.exists():
            raise RetainError(
                f"{begun}: has files that manifest.json does not list; restore the manifest that "
                "lists them, or delete this folder to learn the task again"
            )
        difference = _difference(mark, key) if begun == folder else f"is not on '{task.name}'"
        if difference:
            raise RetainError(
                f"{begun}: its unfinished work {difference}; continue with what it was begun with, "
                "or delete this folder to learn the task again"
            )
        if changed := other_versions(read_json(mark)):
            say(f"continues unfinished work on {task.name}, although {', '.join(changed)}")
    write_json(folder / UNFINISHED / TASK, key)


def _difference(mark: Path, key: Mapping[str, Any]) -> str:
    """How unfinished work differs from what is to be learned; empty where it can be continued."""
    try:
        # Work that says nothing of shares was begun without.
        stored = {"shard": "none", **read_record(dict[str, Any], mark)}
    except RetainError:
        return f"has a damaged {UNFINISHED}/{TASK}"
    differ = [
        f"{name} {stored.get(name)!r} is now {key[name]!r}"
        for name in ("task", "training", "processes", "shard")
        if stored.get(name) != key[name]
    ]
    if stored.get("fingerprints") != key["fingerprints"]:
        differ.append("its examples have changed")
    differ += other_versions(stored, patches=False)
    return f"was begun differently ({', '.join(differ)})" if differ else ""


def seal(folder: Path) -> None:
    """Writes the seal of a folder whose files are complete.

    Raises:
        RetainError: when the files cannot be written.
    """
    sums = {}
    with processes.first_alone() as writes, writing(folder):
        if writes:
            files = [path for path in sorted(folder.iterdir()) if path.name != SEAL]
            for path in (*files, folder.parent):
                sync(path)
            sums = {path.name: checksum(path) for path in files}
    write_json(folder / SEAL, sums)  # on the first process alone, too


def is_sealed(folder: Path) -> bool:
    """Whether a folder has a seal and every file is as it was when sealed."""
    try:
        sums = read_json(folder / SEAL)
        return all(checksum(folder / name) == sealed for name, sealed in sums.items())
    except (RetainError, OSError, AttributeError):
        return False


@contextmanager
def saving(folder: Path, step: int) -> Iterator[None]:
    """Wraps Trainer's save: seals the new checkpoint, then deletes the previous one.

    Raises:
        RetainError: when the files cannot be written.
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
    """The newest sealed checkpoint of a phase; None without one."""
    return next((path for path in reversed(checkpoints(folder)) if is_sealed(path)), None)


def keep_only(folder: Path, kept: Path | None) -> None:
    """Deletes a phase's other checkpoints; every process has to call it."""
    remove_folders(*(path for path in checkpoints(folder) if path != kept))


def checkpoints(folder: Path) -> list[Path]:
    """Folders of a phase's checkpoints, sealed or not, in the order of their steps."""
    return sorted(folder.glob("checkpoint-*"), key=step_of)


def step_of(checkpoint: Path) -> int:
    """Optimizer step after which a checkpoint was taken."""
    return int(checkpoint.name.rpartition("-")[2])
