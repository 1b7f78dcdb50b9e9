"""`manifest.json`: the checksums of a run's committed files, and the change that is under way."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from types import UnionType
from typing import Any, NamedTuple, TypeGuard

from retain.errors import RetainError
from retain.runs.records import SINGLE
from retain.system.files import read_json, write_json

FORMAT = 1
MANIFEST = "manifest.json"
TASK_PLACE = r"tasks/\d{1,9}-[\w.-]{1,60}(/[\w.-]{1,60})*"
NAME = re.compile(rf"{TASK_PLACE}|(?!tasks/)[\w.-]{{1,60}}(/[\w.-]{{1,60}})*")
"""Names of a run's files; a manifest that names any other is refused."""
REMOVABLE = re.compile(rf"{TASK_PLACE}|{re.escape(SINGLE)}|compact/\d{{1,9}}\.safetensors")
"""Names of what may be deleted: a task's folder, files in it, and what goes with a task."""


class Manifest(NamedTuple):
    """What a manifest says.

    Attributes:
        files: by the name of each committed file its sha256.
        changing: by the name of a committed file its next sha256, which is as good until the change
            is complete; None for a file or folder that is being deleted.
    """

    files: dict[str, str]
    changing: dict[str, str | None]


def read_manifest(path: Path) -> Manifest:
    """Reads a manifest, checked against its own checksum.

    Raises:
        RetainError: when it is damaged, of another format, or names a file outside of the run.
    """
    values = read_json(path)
    if not isinstance(values, dict) or values.get("sha256") != _own_checksum(values):
        raise RetainError(f"{path}: damaged (its checksum does not match); restore it")
    if values.get("format") != FORMAT:
        raise RetainError(
            f"{path}: format {values.get('format')}, but this version reads {FORMAT}; "
            "use the version of retain that wrote it"
        )
    files, changing = values.get("files"), values.get("changing", {})
    if not _are_checksums(files, str) or not _are_checksums(changing, str | None):
        raise RetainError(f"{path}: lists no files with their checksums; restore it")
    removed = [name for name, checksum in changing.items() if checksum is None]
    for name in (*files, *changing):
        allowed = REMOVABLE if name in removed else NAME
        if not allowed.fullmatch(name) or ".." in PurePosixPath(name).parts:
            raise RetainError(
                f"{path}: names a file outside of the run ({name[:80]!a}); restore it"
            )
    return Manifest(files, changing)


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Writes a manifest with its own checksum."""
    values: dict[str, Any] = {"format": FORMAT, "files": dict(sorted(manifest.files.items()))}
    if manifest.changing:
        values["changing"] = dict(sorted(manifest.changing.items()))
    write_json(path, {**values, "sha256": _own_checksum(values)})


def _are_checksums(value: Any, kinds: type | UnionType) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict) and all(isinstance(each, kinds) for each in value.values())


def _own_checksum(values: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in values.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
