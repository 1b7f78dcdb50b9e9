"""Files: atomic writes, and errors that name the file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from retain.errors import RetainError
from retain.system import files
from retain.testing.tiny import read_files


def test_written_values_read_back(tmp_path: Path) -> None:
    value = {"a": [1, None, "ü任"], "b": 0.1}
    files.write_json(tmp_path / "new" / "a.json", value)
    assert files.read_json(tmp_path / "new" / "a.json") == value
    files.write_jsonl(tmp_path / "a.jsonl", [value, "line\nbreak"])
    assert files.read_jsonl(tmp_path / "a.jsonl") == [value, "line\nbreak"]
    tensors = {"x": torch.arange(6.0).view(2, 3).T, "y": torch.tensor([1, 2])}
    files.write_tensors(tmp_path / "a.safetensors", tensors)
    read = files.read_tensors(tmp_path / "a.safetensors")
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    assert set(read) == set(tensors)
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, "old")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, step, stop)
    with pytest.raises(KeyboardInterrupt):
        files.write_json(path, "new")
    monkeypatch.undo()
    assert files.read_json(path) == "old"
    files.write_json(path, "new")
    assert files.read_json(path) == "new"


def test_content_is_synced_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, events = tmp_path / "a", []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("replace"), replace(a, b)))
    files.write_bytes(path, b"x")
    assert events == ["fsync", "replace", "fsync"]  # the last one is the folder's


def test_unwritable_place_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "taken", tmp_path / "file" / "a"):
        with pytest.raises(RetainError, match=f"{path}: cannot be written .*choose another"):
            files.write_text(path, "new")
    assert read_files(tmp_path) == {"file": b"x"}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_refuses_what_is_no_number(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "a.json", value)
    with pytest.raises(ValueError, match="JSON"):
        files.write_jsonl(tmp_path / "a.jsonl", [value])
    assert not list(tmp_path.iterdir())


# -- reading


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    for read in (files.read_json, files.read_jsonl, files.read_tensors, files.read_text):
        with pytest.raises(RetainError, match=f"{tmp_path / 'gone'}: no such file; "):
            read(tmp_path / "gone")
        with pytest.raises(RetainError, match=str(tmp_path)):
            read(tmp_path)
    bad = tmp_path / "bad"
    for content in (b"", b"{", b"\xff\xfe\x00", b"[" * 100_000):
        bad.write_bytes(content)
        with pytest.raises(RetainError, match=f"{bad}: not readable as JSON .*restore"):
            files.read_json(bad)
        with pytest.raises(RetainError, match=f"{bad}: damaged .*restore"):
            files.read_tensors(bad)
    files.write_tensors(bad, {"x": torch.ones(100)})
    bad.write_bytes(bad.read_bytes()[:-1])
    with pytest.raises(RetainError, match=f"{bad}: damaged"):
        files.read_tensors(bad)


def test_jsonl_errors_name_the_line_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('\ufeff{"a": 1}\r\n\n{"a":}\n', encoding="utf-8", newline="")
    with pytest.raises(RetainError, match=f"{path}, line 3: not valid JSON"):
        files.read_jsonl(path)
    path.write_bytes(b'{"a": 1}\n\n{"a": "\xe9"}\n')
    with pytest.raises(RetainError, match=f"{path}, line 3: not UTF-8 .*save the file as UTF-8"):
        files.read_jsonl(path)
    path.write_text('\ufeff{"a": 1}\r\n\n{"b": "\u2028"}', encoding="utf-8", newline="")
    assert files.read_jsonl(path) == [{"a": 1}, {"b": "\u2028"}]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_are_finite(tmp_path: Path, value: float) -> None:
    path = tmp_path / "a.safetensors"
    files.write_tensors(path, {"x": torch.tensor([1.0, value]), "y": torch.tensor([1])})
    with pytest.raises(RetainError, match="'x' has a NaN or an infinity; restore the file"):
        files.read_weights(path)
    assert files.read_tensors(path)["y"].item() == 1
