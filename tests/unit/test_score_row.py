"""Which cells of the score matrix are decoded again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from retain.evaluation.answers import Evaluation
from retain.learner.learner import Learner
from retain.tasks import Task
from retain.testing.runs import Record
from retain.testing.tiny import make_backbone, make_learner, make_task

FIRST, SECOND = make_task("copy"), make_task("constant")
CHECKED = 2


@pytest.mark.parametrize("changes", [False, True])
def test_a_sample_is_decoded_before_cells_are_copied(
    changes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = Record()
    learner = make_learner("pertask", make_backbone("llama"), tmp_path / "run", messages)
    decoded: list[tuple[str, int]] = []
    evaluate = Learner._evaluate

    def counted(self: Learner, task: Task, limit: int | None = None) -> Evaluation:
        decoded.append((task.name, len(task.test)))
        cell = evaluate(self, task, limit)
        if changes and len(task.test) == CHECKED:
            return replace(cell, rows=[{**row, "prediction": "other"} for row in cell.rows])
        return cell

    monkeypatch.setattr(Learner, "_evaluate", counted)
    monkeypatch.setattr("retain.learner.score_row.CHECKED", CHECKED)
    learner.learn(FIRST)
    learner.learn(SECOND)
    again = [("copy", len(FIRST.test))] if changes else []
    whole = [("copy", len(FIRST.test)), ("copy", CHECKED), *again, ("constant", len(SECOND.test))]
    assert decoded == whole
    assert any("1 older scores are kept" in text for text in messages.said) != changes
    assert learner.scores["matrix"][1][0] == learner.scores["matrix"][0][0]
