"""A run goes on under any file that means the same experiment, and under no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from retain.errors import RetainError
from retain.experiment.config import ExperimentConfig
from retain.experiment.resume import refuse_changes

FOLDER = Path("run")


def experiment(*tasks: dict[str, Any], **more: Any) -> ExperimentConfig:
    return ExperimentConfig(
        **{"backbone": "model", "method": {"name": "seqlora"}, "tasks": list(tasks), **more}
    )


HUB = {"path": "some/data", "reader": "hub"}
TRACE = {"path": "data/Py150", "reader": "trace"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"path": "copy.jsonl"}, {"path": "./copy.jsonl"}),
        ({"path": "copy.jsonl", "test": "t.jsonl"}, {"path": "copy.jsonl", "test": "a/../t.jsonl"}),
        ({"path": "copy.jsonl"}, {"path": "copy.jsonl", "name": "copy"}),
        ({"path": "copy.jsonl"}, {"path": "copy.jsonl", "metric": "exact_match"}),
        ({"path": "copy.jsonl"}, {"path": "copy.jsonl", "training": {}}),
        ({"path": "copy.jsonl"}, {"path": "copy.jsonl", "columns": {"prompt": "prompt"}}),
        (HUB, {**HUB, "test": "test", "name": "data"}),
        (TRACE, {**TRACE, "path": "data/Py150/", "metric": "edit_similarity"}),
        ({"path": "copy.jsonl"}, {"path": "copy.jsonl", "extract": "whole"}),
    ],
)
def test_two_ways_to_write_a_task(one: dict[str, Any], other: dict[str, Any]) -> None:
    refuse_changes(experiment(one), experiment(other, backbone="./model"), FOLDER, 1)
    refuse_changes(experiment(other), experiment(one), FOLDER, 1)


COPY, LETTER = {"path": "copy.jsonl"}, {"path": "letter.jsonl", "name": "last"}


@pytest.mark.parametrize(
    ("tasks", "says"),
    [
        ([COPY], r"\(task 2 \(last\) is now missing\)"),
        ([COPY, {**LETTER, "path": "x.jsonl"}], r"\(task 2 \(last\): path: letter.jsonl is now x"),
        (
            [{**COPY, "metric": "rouge_l"}, LETTER],
            r"\(task 1 \(copy\): metric: exact_match is now r",
        ),
        (
            [{**COPY, "extract": "short_answer"}, LETTER],
            r"\(task 1 \(copy\): extract: whole is now short_answer",
        ),
        ([{**COPY, "training": {"max_steps": 3}}, LETTER], r"training.max_steps: None is now 3\)"),
        ([{**COPY, "columns": {"answer": "a"}}, LETTER], r"columns.answer: answer is now a\)"),
    ],
)
def test_another_task_is_named(tasks: list[dict[str, Any]], says: str) -> None:
    with pytest.raises(RetainError, match=says):
        refuse_changes(experiment(COPY, LETTER), experiment(*tasks), FOLDER, 2)
    refuse_changes(experiment(COPY, LETTER), experiment(*tasks), FOLDER, 0)


def test_a_task_that_the_run_lacks() -> None:
    with pytest.raises(RetainError, match=r"task 2 \(last\) is not in the run"):
        refuse_changes(experiment(COPY), experiment(COPY, LETTER), FOLDER, 2)


def test_other_old_scores_are_another_experiment() -> None:
    given = experiment(COPY, evaluation={"old": "limit  20"})
    with pytest.raises(RetainError, match=r"evaluation.old: all is now limit 20\)"):
        refuse_changes(experiment(COPY), given, FOLDER, 1)


@pytest.mark.parametrize("old", ["limit", "limit 1", "limit 0", "some", "sampled -2", 3])
def test_old_scores_are_all_or_a_number(old: Any) -> None:
    with pytest.raises(ValueError, match=r"evaluation.old"):
        experiment(COPY, evaluation={"old": old})
