"""The chaos script in short: runs killed at random moments, and what it makes of a difference."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from benchmarks import chaos


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chaos, "TASKS", chaos.TASKS[:2])
    monkeypatch.setattr(chaos, "STEPS", 2)


@pytest.mark.parametrize("method", ["sapt", pytest.param("seekr", marks=pytest.mark.slow)])
def test_killed_runs_come_to_the_same_end(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], method: str
) -> None:
    assert chaos.chaos(tmp_path, [method], runs=2, seed=0)
    assert "2 of 2 identical" in capfd.readouterr().out


def test_a_difference_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of three runs, one lacks a file and one has another number in it."""

    def finished(config: Path, folder: Path, seconds: float | None = None) -> bool:
        (folder / "run").mkdir(exist_ok=True)
        if not folder.name.startswith("1-"):
            score = "0" if folder.name.startswith("2-") else "1"
            (folder / "run" / "scores.json").write_text(score)
        return seconds is None

    monkeypatch.setattr(chaos, "write_stream", lambda place: None)
    monkeypatch.setattr(chaos, "attempt", finished)
    assert not chaos.chaos(tmp_path, ["sapt"], runs=3, seed=0)
    *named, last = capsys.readouterr().out.splitlines()
    assert named == ["1-sapt: scores.json", "2-sapt: scores.json"]
    assert last.startswith("1 of 3 identical, after ")


def test_a_run_that_ends_before_its_kill_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = iter([True, False, True])  # the first try comes to its end, the second is killed once
    monkeypatch.setattr(chaos, "attempt", lambda *_: next(ended))
    draw = random.Random(0)
    assert chaos.kill_and_resume(tmp_path / "x.yaml", tmp_path / "run", 1.0, draw) == 1
    assert next(ended, None) is None


def test_a_run_that_fails_is_no_end(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(RuntimeError, match="run: ended with 2; see its log"):
        chaos.kill_and_resume(tmp_path / "gone.yaml", folder, 60.0, random.Random(0))
    assert "gone.yaml: no such file" in (folder / "log").read_text()
