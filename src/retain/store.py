"""The run directory: atomic writes, checksums, one writer.

A file is written under a temporary name, synced and renamed, so that a crash leaves the old file or
the new one, never half of one. `manifest.json` lists the sha256 of every committed file, and of
itself; what it does not list is unfinished work, which a resumed run does again or continues.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

import safetensors
import safetensors.torch
import torch
import yaml
from filelock import FileLock, Timeout

from retain import processes
from retain.errors import RetainError, first_line

FORMAT = 1
MANIFEST = "manifest.json"
LOCK = ".lock"
NAME = re.compile(r"(tasks/\d+-|(?!tasks/))[\w.-]{1,60}(/[\w.-]{1,60})*")
"""Names of a run's files: nothing else is opened for a manifest that names it."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Whoever writes a file or folder does it in here.

    Raises:
        RetainError: when the disk refuses (full, read-only, a folder in the way).
    """
    try:
        yield
    except (OSError, safetensors.SafetensorError) as error:
        cause = getattr(error, "strerror", None) or first_line(error)
        raise RetainError(
            f"{path}: cannot be written ({cause}); free the place or choose another"
        ) from None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary place to write; at the end `path` is replaced by it, or left as it was.

    Raises:
        RetainError: as in `writing`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with writing(path):
            _make_folder(path.parent)
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink()


def sync(path: Path) -> None:
    """Waits until a file's content, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_folder(path: Path) -> None:
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in new:
        sync(folder.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces `path` by `content`, or leaves it as it was."""
    with processes.first_alone() as writes:
        if writes:
            with replacing(path) as temporary:
                temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Writes one JSON value atomically; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Writes one JSON value a line, atomically."""
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    write_text(path, "".join(lines))


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Writes named tensors as safetensors, atomically; those on the CPU are not copied."""
    with processes.first_alone() as writes:
        if writes:
            plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            with replacing(path) as temporary:
                safetensors.torch.save_file(plain, temporary)


def read_json(path: Path) -> Any:
    """Reads one JSON value; raises RetainError naming the file when it is missing or no JSON."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise RetainError(f"{path}: no such file; is this a finished run?") from None
    except (OSError, ValueError, RecursionError) as error:
        raise RetainError(f"{path}: not readable as JSON ({error}); restore it") from None


def read_text(path: Path) -> str:
    """Reads UTF-8 text, with or without a byte order mark.

    Raises:
        RetainError: naming the file, and the line that is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise RetainError(f"{path}: no such file; check the path") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise RetainError(f"{path}, line {line}: not UTF-8 text; save the file as UTF-8") from None
    except OSError as error:
        raise RetainError(f"{path}: cannot be read ({error.strerror}); check the path") from None


def parse_yaml(text: str) -> Any:
    """One YAML value; whatever is wrong with it is a YAMLError."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise
    except Exception as error:  # of many kinds, such as for the date 2020-13-45
        raise yaml.YAMLError(first_line(error)) from None


def read_jsonl(path: Path) -> list[Any]:
    """Reads one JSON value a line; raises RetainError naming the file and the line."""
    return [row for _, row in numbered_jsonl(path)]


def numbered_jsonl(path: Path) -> list[tuple[int, Any]]:
    """As `read_jsonl`, each row with the number of its line; blank lines are skipped."""
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            try:
                rows.append((number, json.loads(line)))
            except (ValueError, RecursionError) as error:
                raise RetainError(
                    f"{path}, line {number}: not valid JSON ({error}); each line is one JSON object"
                ) from None
    return rows


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Reads a safetensors file onto the CPU; raises RetainError naming a missing or damaged one."""
    try:
        return safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise RetainError(f"{path}: no such file; is this a finished run?") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise RetainError(f"{path}: damaged ({error}); restore it or relearn the task") from None


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """As `read_tensors`, for what computes answers: every number has to be finite."""
    tensors = read_tensors(path)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise RetainError(
                f"{path}: '{name}' holds numbers that are not finite; restore it from a copy"
            )
    return tensors


def slug(name: str) -> str:
    """A safe folder name for a free-text task name: letters of any script, digits, `-` and `_`."""
    return re.sub(r"[^\w-]+", "-", name).strip("-")[:40] or "task"


class RunDirectory:
    """One run on disk.

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
        self._lock = FileLock(path / LOCK)

    # -- one writer

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the run for writing; it is free again at the end, or when the process dies.

        Raises:
            RetainError: when another process holds it, or has changed it since it was read.
        """
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
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
            yield
        finally:
            self._lock.release()

    def _remove_temporary(self) -> None:
        """A writer that was killed may have left them."""
        for path in (self.path / "tasks").rglob(".*.tmp") if processes.is_first() else ():
            with suppress(OSError):
                path.unlink()

    def _refuse_changed(self) -> None:
        """What another writer committed would look like unfinished work here, and be cleared."""
        known = self.files
        if self.exists:
            self.load_manifest()
        now, self.files = self.files, known
        if now != known:
            raise RetainError(f"{self.path}: changed since it was loaded; load it again")

    # -- what is committed

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
        manifest = read_json(path)
        if not isinstance(manifest, dict) or manifest.get("sha256") != _self_checksum(manifest):
            raise RetainError(f"{path}: damaged (its checksum does not match); restore it")
        if manifest.get("format") != FORMAT:
            raise RetainError(
                f"{path}: format {manifest.get('format')}, but this version reads {FORMAT}; "
                "use the version of retain that wrote it"
            )
        files = manifest.get("files")
        if not isinstance(files, dict) or not all(isinstance(sum_, str) for sum_ in files.values()):
            raise RetainError(f"{path}: lists no files with their checksums; restore it")
        for name in files:
            if not NAME.fullmatch(name) or ".." in PurePosixPath(name).parts:
                raise RetainError(f"{path}: names a file outside of the run ({name!a}); restore it")
        self.files = files

    def commit(self, paths: Iterable[Path], superseded: Iterable[str] = ()) -> None:
        """Adds files to the manifest (or renews their checksums), then writes it.

        Args:
            paths: the files.
            superseded: names of committed files that these replace: they leave the manifest.
        """
        for name in superseded:
            del self.files[name]
        for path in paths:
            self.files[path.relative_to(self.path).as_posix()] = checksum(path)
        manifest: dict[str, Any] = {"format": FORMAT, "files": dict(sorted(self.files.items()))}
        manifest["sha256"] = _self_checksum(manifest)
        write_json(self.path / MANIFEST, manifest)

    def commits(self, path: Path) -> bool:
        """Whether a file below the run is committed."""
        return path.relative_to(self.path).as_posix() in self.files

    def damaged(self, paths: Iterable[str] | None = None) -> list[str]:
        """Checks committed files (all of them by default); returns a line for each bad one."""
        complaints = []
        for name in self.files if paths is None else paths:
            path = self.path / name
            if not path.resolve().is_relative_to(self.path.resolve()):
                complaints.append(f"{path}: leads out of the run; restore it from a copy")
            elif not path.is_file():
                complaints.append(f"{path}: missing; restore it from a copy of the run")
            elif checksum(path) != self.files[name]:
                complaints.append(
                    f"{path}: damaged (its checksum does not match); restore it from a copy"
                )
        return complaints

    def check(self, prefix: str = "") -> None:
        """Raises RetainError for the first damaged committed file whose name starts so."""
        for complaint in self.damaged(n for n in self.files if n.startswith(prefix)):
            raise RetainError(complaint)

    # -- tasks

    def task_folder(self, index: int, name: str) -> Path:
        """`tasks/<nn>-<name>`, counted from 1."""
        return self.path / "tasks" / f"{index + 1:02d}-{slug(name)}"

    def learned(self) -> list[Path]:
        """The folders of the tasks whose learning is committed, oldest first."""
        names = (n for n in self.files if n.startswith("tasks/") and n.endswith("/task.json"))
        return [(self.path / name).parent for name in sorted(names, key=_task_number)]

    def unfinished(self) -> int:
        """Bytes of unfinished work on tasks."""
        learned = self.learned()
        return sum(
            path.stat().st_size
            for folder in (self.path / "tasks").glob("*")
            if folder not in learned
            for path in folder.rglob("*")
            if path.is_file()
        )

    def commit_folder(self, folder: Path, leave_out: str, latest_only: Iterable[str] = ()) -> None:
        """Commits every file below a task's folder, except the subfolder `leave_out`.

        `latest_only` names files that only the newest task's folder keeps.
        """
        wanted = {
            (old / name).relative_to(self.path).as_posix()
            for old in self.learned()
            for name in latest_only
            if (folder / name).exists()
        }
        self.commit(
            (
                path
                for path in sorted(folder.rglob("*"))
                if path.is_file()
                and path.relative_to(folder).parts[0] != leave_out
                and not path.name.startswith(".")
            ),
            wanted & self.files.keys(),
        )

    def superseded(self, index: int, latest_only: Iterable[str]) -> Path | None:
        """A file of task number `index` that only the newest task's folder has, if there is one."""
        learned = self.learned()
        for name in latest_only:
            old, new = (learned[i] / name for i in (index, -1))
            if self.commits(new) and not self.commits(old):
                return old
        return None

    def roll_back(
        self, index: int, latest_only: Iterable[str] = (), of_all_tasks: Iterable[str] = ()
    ) -> None:
        """Forgets the tasks after number `index`, and files that speak of all tasks.

        The caller holds the lock.

        Raises:
            RetainError: when the run keeps some of its files for the newest task only.
        """
        lost = self.superseded(index, latest_only)
        if lost is not None:
            raise RetainError(
                f"{lost}: no longer there, since this method keeps only the newest weights; learn "
                "the stream again up to that task"
            )
        gone = self.learned()[index + 1 :]
        places = tuple(f"{folder.relative_to(self.path).as_posix()}/" for folder in gone)
        self.commit((), [n for n in self.files if n.startswith((*places, *of_all_tasks))])
        for folder in gone:
            remove_folder(folder)

    def remove_superseded(self, latest_only: Iterable[str]) -> None:
        """Deletes such files where they are no longer committed; a crash may have left them."""
        paths = [folder / name for folder in self.learned() for name in latest_only]
        with processes.first_alone() as deletes:
            for path in paths if deletes else ():
                if not self.commits(path):
                    path.unlink(missing_ok=True)


def remove_folder(path: Path) -> None:
    """Deletes a folder of unfinished work, if it is there."""
    with processes.first_alone() as deletes:
        if deletes:
            shutil.rmtree(path, ignore_errors=True)


def _task_number(name: str) -> int:
    return int(name.removeprefix("tasks/").partition("-")[0])


def checksum(path: Path) -> str:
    """The sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _self_checksum(manifest: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
