"""Scores taken just before a task is learned."""

import json
from pathlib import Path

import pytest

from retain.errors import RetainError
from retain.learner.learner import Learner
from retain.testing.tiny import TRAINING, make_backbone, make_task


@pytest.mark.parametrize(("method", "measured"), [("seqlora", True), ("pertask", False)])
def test_zero_shot(method: str, measured: bool, tmp_path: Path) -> None:
    learner = Learner(
        make_backbone("llama"),
        method,
        tmp_path / "run",
        training=TRAINING,
        evaluation={"max_new_tokens": 4, "zero_shot": True},
    )
    for name in ("copy", "constant"):
        learner.learn(make_task(name))
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert [score is not None for score in scores["zero_shot"]] == [measured] * 2
    assert (scores["metrics"]["zero_shot_transfer"] is not None) is measured
    files = Learner.load(tmp_path / "run", backbone=make_backbone("llama")).run.files
    kept = sorted(name for name in files if name.endswith("zero_shot.json"))
    assert len(kept) == 2 * measured
    if kept:
        (tmp_path / "run" / kept[0]).write_text("100")
        with pytest.raises(RetainError, match=r"zero_shot\.json: damaged"):
            Learner.load(tmp_path / "run", backbone=make_backbone("llama"))
