"""Atomic file writes, checked reads, and errors that name the file.

A file is written under a temporary name, synced and renamed. So a crash leaves the old file or the
new one, never a partial one. With several processes only rank 0 writes; the others wait.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import safetensors
import safetensors.torch
import torch

from retain.errors import RetainError, first_line
from retain.system import processes
from retain.system.paths import refuse_special, refuse_special_target

LARGEST_JSON = 64 * 2**20
"""Bytes of a JSON file of one value; the largest of a run have a few megabytes."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns OS write errors into a RetainError that names the path.

    Raises:
        RetainError: if the write fails (disk full, read-only, a folder has that name).
    """
    try:
        yield
    except (OSError, safetensors.SafetensorError) as error:
        cause = getattr(error, "strerror", None) or first_line(error)
        raise RetainError(
            f"{path}: cannot be written ({cause}); correct that, or choose another path"
        ) from None


def temporary_of(path: Path) -> Path:
    """Returns the name under which this process writes what is to be renamed to `path`."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def remove_left(path: Path) -> None:
    """Deletes what killed processes of this machine have left under `temporary_of(path)`."""
    name = re.compile(rf"\.{re.escape(path.name)}\.([0-9]{{1,9}})\.tmp")
    with suppress(OSError):
        for other in path.parent.iterdir():
            match = name.fullmatch(other.name)
            if match is None or other.is_symlink():
                continue
            process = int(match[1])  # a container may give the number of a killed one again
            if process == os.getpid() or not psutil.pid_exists(process):
                shutil.rmtree(other) if other.is_dir() else other.unlink()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path to write; replaces `path` by it at the end, or leaves it unchanged.

    Raises:
        RetainError: as in `writing`.
    """
    refuse_special_target(path)
    temporary = temporary_of(path)
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
    """Waits until the content of a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_folder(path: Path) -> None:
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync(folder.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes bytes atomically."""
    with processes.first_alone() as writes:
        if writes:
            with replacing(path) as temporary:
                temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically."""
    write_bytes(path, text.encode())


def as_json(value: Any) -> bytes:
    """Returns one JSON value as it is written; NaN and infinity are refused."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()


def write_json(path: Path, value: Any) -> None:
    """Writes one JSON value atomically; NaN and infinity are refused."""
    write_bytes(path, as_json(value))


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Writes JSON Lines (one JSON value per line) atomically; NaN and infinity are refused."""
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    write_text(path, "".join(lines))


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Writes named tensors as safetensors, atomically; contiguous CPU tensors are not copied."""
    with processes.first_alone() as writes:
        if writes:
            on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            with replacing(path) as temporary:
                safetensors.torch.save_file(on_cpu, temporary)


def read_json(path: Path) -> Any:
    """Reads one JSON value.

    Raises:
        RetainError: if the file is missing or not JSON; it names the file.
    """
    refuse_special(path)
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError(f"it has more than {LARGEST_JSON // 2**20} MB")
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise RetainError(f"{path}: no such file; is this a finished run?") from None
    except (OSError, ValueError, RecursionError) as error:
        raise RetainError(f"{path}: not readable as JSON ({error}); restore it") from None


def read_text(path: Path) -> str:
    """Reads UTF-8 text, with or without a byte order mark.

    Raises:
        RetainError: if the file cannot be read or a line is not UTF-8; it names file and line.
    """
    refuse_special(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise RetainError(f"{path}: no such file; check the path") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise RetainError(f"{path}, line {line}: not UTF-8 text; save the file as UTF-8") from None
    except OSError as error:
        raise RetainError(f"{path}: cannot be read ({error.strerror}); check the path") from None


def read_jsonl(path: Path) -> list[Any]:
    """Reads JSON Lines (one JSON value per line); blank lines are skipped.

    Raises:
        RetainError: if the file cannot be read or a line is not JSON; it names file and line.
    """
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise RetainError(
                    f"{path}, line {number}: not valid JSON ({error}); each line is one JSON object"
                ) from None
    return rows


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Reads a safetensors file onto the CPU.

    Raises:
        RetainError: if the file is missing or damaged; it names the file.
    """
    try:
        return safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise RetainError(f"{path}: no such file; is this a finished run?") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise RetainError(f"{path}: damaged ({error}); restore it or relearn the task") from None


def read_weights(
    path: Path, shapes: Mapping[str, Sequence[int]] | None = None
) -> dict[str, torch.Tensor]:
    """Reads tensors that compute answers, onto the CPU: all finite, and of the shapes needed.

    Args:
        path: a safetensors file.
        shapes: by name what the file has to hold; it may hold more. None leaves it to the caller.

    Raises:
        RetainError: naming the file, and the first tensor that is not finite, missing, or of
            another shape.
    """
    tensors = read_tensors(path)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise RetainError(
                f"{path}: tensor '{name}' has a NaN or an infinity; restore the file from a copy"
            )
    for name, shape in (shapes or {}).items():
        if name not in tensors or tuple(tensors[name].shape) != tuple(shape):
            stored = tuple(tensors[name].shape) if name in tensors else "missing"
            raise RetainError(
                f"{path}: '{name}' is {stored}, but this backbone needs {tuple(shape)}; load the "
                "run with its own backbone, or restore the file from a copy of the run"
            )
    return tensors


def remove_folders(*paths: Path) -> None:
    """Deletes folders of unfinished work where they exist; only rank 0's `paths` are used."""
    with processes.first_alone() as deletes:
        for path in paths if deletes else ():
            shutil.rmtree(path, ignore_errors=True)


def checksum(path: Path) -> str:
    """Returns the sha256 of a file in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
