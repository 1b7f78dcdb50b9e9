"""What each of several processes does about a checkpoint, and what looking for one leaves alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from retain.runs import checkpoints
from retain.runs.checkpoints import SEAL, is_sealed, keep_only, last_checkpoint, seal
from retain.system import processes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Checkpoints of steps 2, 9 and 10, of which the last was cut off."""
    for step in (2, 9, 10):
        path = tmp_path / f"checkpoint-{step}"
        path.mkdir()
        (path / "model.safetensors").write_bytes(bytes(step))
        if step < 10:
            seal(path)
    return tmp_path


def test_the_newest_whole_checkpoint_is_found_and_nothing_deleted(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    assert last_checkpoint(folder) == folder / "checkpoint-9"
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("kept", ["checkpoint-9", None])
def test_the_other_checkpoints_go(kept: str | None, folder: Path) -> None:
    keep_only(folder, folder / kept if kept else None)
    assert [path.name for path in folder.iterdir()] == ([kept] if kept else [])


def test_only_the_first_process_reads_what_is_sealed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unsealed = folder / "checkpoint-10"
    read: list[Path] = []
    monkeypatch.setattr(checkpoints, "checksum", lambda path: read.append(path) or "sum")
    monkeypatch.setattr(processes, "is_first", lambda: False)
    seal(unsealed)
    assert not (unsealed / SEAL).exists()
    assert not read
    monkeypatch.setattr(processes, "is_first", lambda: True)
    seal(unsealed)
    assert is_sealed(unsealed)
    assert read
