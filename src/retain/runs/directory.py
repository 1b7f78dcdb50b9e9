"""The run directory: committed files, their checksums, and the lock of its one writer.

`manifest.json` lists the sha256 of every committed file, and of itself; files that it does not list
are unfinished work, which a resumed run repeats or continues. Before a committed file is replaced
or deleted the manifest says so, under `changing`, so that a kill at any moment leaves a valid run.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path

from filelock import FileLock, Timeout

from retain.errors import RetainError
from retain.runs.manifest import MANIFEST, NAME, Manifest, read_manifest, write_manifest
from retain.runs.records import CONFIG, ENVIRONMENT, SCORES, SINGLE
from retain.system import processes
from retain.system.files import (
    checksum,
    sync,
    write_bytes,
    writing,
)
from retain.system.paths import is_special

LOCK = ".lock"
BEFORE_MANIFEST = re.compile(
    r"\.lock|environment\.json|\.(environment\.json|config\.yaml|manifest\.json)\.\d+\.tmp"
)
"""Files that a kill before the first commit leaves; beside the environment, the settings too."""
TASK_FOLDER = re.compile(r"\d+-.+")
TEMPORARY = re.compile(r"\..+\.\d+\.tmp")
"""Names under which a file is written, or a folder deleted, with the process's number."""
REMEDIES = {
    SCORES: "retain run CONFIG --resume writes it again",
    SINGLE: "retain report --single writes it again",
    ENVIRONMENT: "restore it from a copy, or from a run begun on the same backbone and versions",
}
"""How to get back files for which a copy of the run is not the only source."""


def slug(name: str) -> str:
    """Returns a safe folder name for a task: letters of any script, digits, `-` and `_`."""
    return re.sub(r"[^\w-]+", "-", name).strip("-")[:40] or "task"


class RunDirectory:
    """One run on disk.

    Attributes:
        path: its folder.
        files, changing: as in `Manifest`; empty before the first commit or `load_manifest`.

    Raises:
        RetainError: when the path is a file, when another process writes to the run, or when a
            file that is read is damaged.
    """

    def __init__(self, path: Path) -> None:
        file = next((place for place in (path, *path.parents) if place.is_file()), None)
        if file is not None:
            raise RetainError(f"{file}: is a file, not a folder; name a run's folder")
        self.path = path
        self.files: dict[str, str] = {}
        self.changing: dict[str, str | None] = {}
        self._lock = FileLock(path / LOCK)

    # -- one writer

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Locks the run for writing; the lock ends with the block, or with the process.

        Raises:
            RetainError: when another process holds the lock, or changed the run since it was read.
        """
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self._refuse_links()  # before the lock is opened, which might be one
            try:
                if processes.is_first():
                    self._lock.acquire(timeout=0)
            except Timeout:
                raise RetainError(
                    f"{self.path}: another process is writing to this run; wait for it to end"
                ) from None
        try:
            self._refuse_changed()
            self._remove_temporary()
            self._settle()
            yield
        finally:
            self._lock.release()

    def _remove_temporary(self) -> None:
        """Deletes temporary files that a killed writer may have left."""
        if processes.is_first():
            below = [self.path / "tasks", self.path / "compact"]
            for path in chain(self.path.glob(".*.tmp"), *(at.rglob(".*.tmp") for at in below)):
                if TEMPORARY.fullmatch(path.name):
                    with suppress(OSError):
                        shutil.rmtree(path) if path.is_dir() else path.unlink()

    def refuse_foreign(self) -> None:
        """Raises RetainError when a run would begin in a folder with files that are not its own."""
        names = {path.name for path in self.path.glob("*")}
        if ENVIRONMENT in names:  # which is written before the settings
            names.discard(CONFIG)
        if any(not BEFORE_MANIFEST.fullmatch(name) for name in names):
            raise RetainError(
                f"{self.path}: has files but no {MANIFEST}; if it was a run, restore that from a "
                "copy, else give another --output"
            )

    def _refuse_links(self) -> None:
        """Raises RetainError for a link, which would lead reads, writes and deletes elsewhere, and
        for a pipe or a device, which might never end."""
        for folder, folders, names in os.walk(self.path):
            for path in (Path(folder, name) for name in (*folders, *names)):
                if is_special(path.lstat().st_mode):
                    raise RetainError(f"{path}: is no file, which a run may not contain; remove it")
                if path.is_symlink():
                    raise RetainError(
                        f"{path}: is a link, which a run may not contain; replace it by the file "
                        "or folder it points to"
                    )

    def _refuse_changed(self) -> None:
        """Raises if another process committed since we loaded: its files would look unfinished."""
        loaded = self.files
        if self.exists:
            self.load_manifest()
        else:
            self.refuse_foreign()
        on_disk, self.files = self.files, loaded
        if on_disk != loaded:
            raise RetainError(f"{self.path}: changed since it was loaded; load it again")

    # -- committed files

    @property
    def exists(self) -> bool:
        """Whether a run was started here."""
        return (self.path / MANIFEST).exists()

    def load_manifest(self) -> None:
        """Reads the manifest and checks it against its own checksum."""
        path = self.path / MANIFEST
        if not self.path.is_dir():
            raise RetainError(f"{self.path}: no such run folder; check the path")
        if not path.exists():
            raise RetainError(f"{self.path}: not a run (it has no {MANIFEST}); check the path")
        self._refuse_links()
        self.files, self.changing = read_manifest(path)

    def write(self, contents: Mapping[Path, bytes]) -> None:
        """Writes files and commits them; there is no other way to replace a committed file.

        A kill on the way leaves every file as it was or as it is to be, and both are valid.
        """
        self._settle()
        sums = {
            self._name(path): hashlib.sha256(content).hexdigest()
            for path, content in contents.items()
        }
        replaced = {name: sum_ for name, sum_ in sums.items() if self.files.get(name, sum_) != sum_}
        if replaced:
            self._write_manifest(self.files, replaced)
        for path, content in contents.items():
            write_bytes(path, content)
        if sums.items() - self.files.items():
            self._write_manifest({**self.files, **sums}, {})

    def commit(self, paths: Iterable[Path], removed: Iterable[str] = ()) -> None:
        """Adds new files to the manifest, and deletes others.

        Args:
            paths: files that have been written and are not committed yet.
            removed: names of files and folders.

        Raises:
            ValueError: when a file is committed already; only `write` may replace it.
        """
        self._settle()
        sums = {self._name(path): checksum(path) for path in paths}
        if known := sums.keys() & self.files.keys():
            raise ValueError(f"committed already: {', '.join(sorted(known))}")
        gone = list(removed)
        kept = {
            name: sum_
            for name, sum_ in self.files.items()
            if not any(name == place or name.startswith(f"{place}/") for place in gone)
        }
        self._write_manifest({**kept, **sums}, dict.fromkeys(gone))
        self._settle()

    def _settle(self) -> None:
        """Completes the change that a manifest speaks of; files are taken as they are."""
        if not self.changing:
            return
        gone = [self.path / name for name, sum_ in self.changing.items() if sum_ is None]
        with processes.first_alone() as deletes:
            for path in gone if deletes else ():
                with writing(path):
                    _delete(path)
        replaced = {
            name: sum_
            for name, sum_ in self.changing.items()
            if sum_ is not None and name in self.files and _has_sum(self.path / name, sum_)
        }
        self._write_manifest({**self.files, **processes.broadcast(replaced)}, {})

    def _write_manifest(self, files: Mapping[str, str], changing: Mapping[str, str | None]) -> None:
        manifest = Manifest(dict(files), dict(changing))
        write_manifest(self.path / MANIFEST, manifest)
        self.files, self.changing = manifest

    def _name(self, path: Path) -> str:
        return path.relative_to(self.path).as_posix()

    def is_going(self, path: Path) -> bool:
        """Whether a file below the run is being deleted, alone or with a folder around it."""
        name = self._name(path)
        return any(
            sum_ is None and (name == place or name.startswith(f"{place}/"))
            for place, sum_ in self.changing.items()
        )

    def is_committed(self, path: Path) -> bool:
        """Whether a file below the run is committed."""
        return self._name(path) in self.files

    def damaged(self, paths: Iterable[str] | None = None) -> list[str]:
        """Checks committed files (default: all); returns a line for each missing or damaged one."""
        complaints = []
        for name in self.files if paths is None else paths:
            path = self.path / name
            remedy = REMEDIES.get(name, "restore it from a copy of the run")
            if not path.is_file():
                complaints.append(f"{path}: missing; {remedy}")
            elif checksum(path) not in (self.files[name], self.changing.get(name)):
                complaints.append(f"{path}: damaged (its checksum does not match); {remedy}")
        return complaints

    def check(self, prefix: str = "") -> None:
        """Raises RetainError for the first damaged committed file whose name begins so."""
        for complaint in self.damaged(n for n in self.files if n.startswith(prefix)):
            raise RetainError(complaint)

    # -- tasks

    def task_folder(self, index: int, name: str) -> Path:
        """Path of a task's folder, `tasks/<nn>-<name>`, counted from 1."""
        return self.path / "tasks" / f"{index + 1:02d}-{slug(name)}"

    def learned(self) -> list[Path]:
        """Folders of the learned and committed tasks, oldest first."""
        names = (n for n in self.files if n.startswith("tasks/") and n.endswith("/task.json"))
        return [(self.path / name).parent for name in sorted(names, key=_task_number)]

    def unlearned(self) -> list[Path]:
        """Folders with files of tasks that are not learned yet."""
        learned = self.learned()
        return [
            folder
            for folder in sorted((self.path / "tasks").glob("*"))
            if TASK_FOLDER.fullmatch(folder.name) and folder not in learned
            if any(path.is_file() for path in folder.rglob("*"))
        ]

    def unfinished(self) -> int:
        """Bytes of unfinished work on tasks."""
        return sum(
            path.stat().st_size
            for folder in self.unlearned()
            for path in folder.rglob("*")
            if path.is_file()
        )

    def own_files(self, folder: Path, leave_out: str) -> list[Path]:
        """The files below a task's folder, but for its subfolder `leave_out`.

        What others put there under names that no run has, hidden files and links are none.
        """
        return [
            path
            for path in sorted(folder.rglob("*"))
            if path.is_file()
            and not path.is_symlink()
            and NAME.fullmatch(path.relative_to(self.path).as_posix())
            and path.relative_to(folder).parts[0] != leave_out
            and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        ]

    def commit_folder(self, folder: Path, leave_out: str, latest_only: Iterable[str] = ()) -> None:
        """Commits a task's own files, except those in the subfolder `leave_out`.

        `latest_only` names files of which only the newest task's are kept; older ones are dropped
        from the manifest in the same write, and then deleted.
        """
        superseded = {
            self._name(old / name)
            for old in self.learned()
            for name in latest_only
            if (folder / name).exists()
        }
        self.commit(self.own_files(folder, leave_out), superseded & self.files.keys())

    def superseded(self, index: int, latest_only: Iterable[str]) -> Path | None:
        """A file of task `index` of which only the newest task's is kept; None without one."""
        learned = self.learned()
        for name in latest_only:
            old, new = (learned[i] / name for i in (index, -1))
            if self.is_committed(new) and not self.is_committed(old):
                return old
        return None

    def roll_back(
        self, index: int, latest_only: Iterable[str] = (), of_all_tasks: Iterable[str] = ()
    ) -> None:
        """Deletes the tasks after number `index`, and the files `of_all_tasks` beside them.

        The caller holds the lock.

        Raises:
            RetainError: when some of the files of task `index` are kept for the newest task only.
        """
        lost = self.superseded(index, latest_only)
        if lost is not None:
            raise RetainError(
                f"{lost}: no longer there: this method keeps only the newest weights; learn the "
                "stream again up to that task"
            )
        beside = [name for name in of_all_tasks if name in self.files]
        self.commit((), [*map(self._name, self.learned()[index + 1 :]), *beside])


def _delete(path: Path) -> None:
    """Deletes a file or folder; a folder goes at once, whatever is open in it."""
    if path.is_dir():
        aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        path.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)  # the next writer tries again
    else:
        path.unlink(missing_ok=True)
    if path.parent.is_dir():
        sync(path.parent)


def _has_sum(path: Path, sum_: str) -> bool:
    return path.is_file() and checksum(path) == sum_


def _task_number(name: str) -> int:
    return int(name.removeprefix("tasks/").partition("-")[0])
