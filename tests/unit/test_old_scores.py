"""`evaluation.old`: what a row measures of older tasks, and what that is compared with."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from retain.errors import RetainError
from retain.evaluation.old import asked_examples, measured_tasks
from retain.learner.learner import Learner
from retain.metrics.continual import standard_error
from retain.report import summarise
from retain.report.compare import Entry, difference, read_entry, tables, why_no_pair
from retain.report.tables import markdown, standings_table
from retain.runs import results
from retain.runs.records import Prediction, predictions_file, read_records
from retain.tasks import Task
from retain.testing.runs import KilledError, Record, content
from retain.testing.tiny import EVALUATION, TRAINING, make_backbone, make_task
from tests.command import call

NAMES = ("copy", "constant", "letter")


@given(st.integers(0, 20), st.integers(1, 25), st.integers(0, 2**31))
def test_draws_are_of_so_many_and_repeatable(count: int, number: int, seed: int) -> None:
    tasks = measured_tasks(f"sampled {number}", count, seed)
    assert tasks <= set(range(count))
    assert len(tasks) == min(number, count)
    assert tasks == measured_tasks(f"sampled {number}", count, seed)
    examples = asked_examples(f"limit {number + 1}", count, seed)
    if number + 1 >= count:
        assert examples is None
    else:
        assert examples is not None
        assert examples == sorted(set(examples))
        assert len(examples) == number + 1
        assert set(examples) <= set(range(count))
    assert measured_tasks("limit 2", count, seed) == set(range(count))
    assert asked_examples("sampled 1", count, seed) is None


def learner_of(folder: Path, old: str, progress: Record | None = None) -> Learner:
    evaluation = {**EVALUATION, "old": old}
    training = {**TRAINING, "learning_rate": 0.05, "max_steps": 12, "save_steps": 12}
    method = {"name": "seqlora", "rank": 4}
    backbone = make_backbone("llama")
    return Learner(
        backbone, method, folder, training=training, evaluation=evaluation, progress=progress
    )


def learn(learner: Learner, last: int = 3, more: bool = False) -> Learner:
    """Learns the first tasks of the stream; `more` says that others would follow."""
    for name in NAMES[len(learner.tasks) : last]:
        learner.learn(task(name), more=more or name != NAMES[last - 1])
    return learner


def task(name: str) -> Task:
    """A task whose answers are scored by their letters, so that few scores are alike."""
    made = make_task(name)
    return Task(made.name, made.train, made.dev, (*made.test, *made.train[:4]), "edit_similarity")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs that differ in `evaluation.old` only; the last two end before the stream does."""
    folder = tmp_path_factory.mktemp("old")
    for old in ("all", "limit 7"):
        learn(learner_of(folder / old, old))
    learn(learner_of(folder / "unfinished", "limit 7"), more=True)
    learn(learner_of(folder / "sampled 1", "sampled 1"), more=True)
    return {path.name: path for path in folder.iterdir()}


def answers(folder: Path, row: int, number: int) -> list[Prediction]:
    run = results.open_run(folder)
    return read_records(Prediction, predictions_file(run.learned()[row], number))


def _printed(entries: list[Entry]) -> str:
    console = Console(file=io.StringIO(), width=300, record=True)
    console.print(tables(entries))
    return console.export_text()


def test_an_older_task_is_asked_a_sample_until_the_last_row(runs: dict[str, Path]) -> None:
    whole, limited = (results.rows(results.open_run(runs[old])) for old in ("all", "limit 7"))
    assert limited[0] == whole[0]
    assert limited[2] == whole[2]
    assert limited[1].scores[1] == whole[1].scores[1]
    asked = answers(runs["limit 7"], 1, 0)
    places = [row.example for row in asked if row.example is not None]
    assert len(places) == 7
    of_all = answers(runs["all"], 1, 0)
    assert [row.prediction for row in asked] == [of_all[place].prediction for place in places]
    (sample,) = limited[1].samples
    assert (sample.task, sample.examples, sample.of) == (0, 7, 8)
    assert sample.error == pytest.approx(standard_error([row.score for row in asked], 8))
    assert limited[1].scores[0] == pytest.approx(fmean(row.score for row in asked))


def test_what_was_lost_is_over_the_same_examples(runs: dict[str, Path]) -> None:
    whole = results.scores(results.open_run(runs["all"]))
    run = results.open_run(runs["limit 7"])
    scores = results.scores(run)
    # Rows right after learning and the last one are of all examples, so BWT is exact.
    for metric in ("average_performance", "backward_transfer"):
        assert scores.metrics[metric] == whole.metrics[metric]
        assert metric not in scores.standard_errors
    places = [row.example or 0 for row in answers(runs["limit 7"], 1, 0)]
    then, now = answers(runs["all"], 1, 0), answers(runs["all"], 2, 0)
    gaps = [then[place].score - now[place].score for place in places]
    since_learned, second = (
        loss.since_learned for loss in results.dropped(results.open_run(runs["all"]))
    )
    assert since_learned is not None
    assert second is not None
    best = max(since_learned.points, fmean(gaps))
    assert scores.metrics["forgetting"] == pytest.approx((best + second.points) / 2)
    unfinished = results.open_run(runs["unfinished"])
    (lost, _) = results.dropped(unfinished)
    first = answers(runs["all"], 0, 0)
    gaps = [first[place].score - now[place].score for place in places]
    assert lost.since_learned is not None
    assert lost.since_learned.points == pytest.approx(fmean(gaps))
    assert lost.since_learned.error == pytest.approx(standard_error(gaps, 8))
    assert len(set(gaps)) > 1  # else it says little
    errors = results.scores(unfinished).standard_errors
    assert set(errors) == {"average_performance", "backward_transfer", "forgetting"}


def test_tasks_that_were_not_drawn_are_left_out(runs: dict[str, Path]) -> None:
    run = results.open_run(runs["sampled 1"])
    whole = results.rows(results.open_run(runs["all"]))
    rows = results.rows(run)
    assert rows[:2] == whole[:2]
    left_out = rows[2].scores.index(None)
    assert left_out < 2
    assert [*rows[2].scores[:left_out], *rows[2].scores[left_out + 1 :]] == [
        score for j, score in enumerate(whole[2].scores) if j != left_out
    ]
    assert not any(row.samples for row in rows)
    metrics = results.scores(run).metrics
    assert metrics["average_performance"] is None
    assert metrics["forgetting"] is None
    both = [summarise(runs[old]) for old in ("all", "sampled 1")]
    for shown in (markdown(both), _printed([read_entry(run.path)])):
        assert "AP: – where the last row lacks scores" in shown
    # Its older answers are not those of the newest model.
    assert set(results.newest_predictions(run)) == set(NAMES) - {NAMES[left_out]}


def test_reports_show_the_error(runs: dict[str, Path]) -> None:
    text = markdown([summarise(runs["limit 7"])])
    (sample,) = results.rows(results.open_run(runs["limit 7"]))[1].samples
    assert f"± {sample.error:.1f}" in text
    assert "a score of 7 test examples, drawn from 8" in text
    assert "±" not in markdown([summarise(runs["all"])])
    changes = list(standings_table(summarise(runs["unfinished"])).columns[4].cells)
    assert "±" in str(changes[0])
    assert "±" not in str(changes[2])
    assert call("check", runs["unfinished"], "--max-forgetting", "0").status in (0, 1)


def test_a_sample_is_not_compared_with_a_whole_score(runs: dict[str, Path]) -> None:
    whole, ended, unfinished = (read_entry(runs[name]) for name in ("all", "limit 7", "unfinished"))
    assert difference([whole], [ended]) is not None  # the last row is of all examples
    assert difference([whole], [unfinished]) is None
    assert why_no_pair([whole], [unfinished]) == "no pair: other tasks, test data or scoring"
    assert difference([unfinished], [unfinished]) is not None
    text = _printed([whole, ended])
    assert "AP: –" not in text
    assert re.search(r"F.Ra of \S+limit 7 rests on samples .* error of up to \d+\.\d", text)
    assert "AP of" not in text


def test_a_killed_row_goes_on_to_the_same_bytes(runs: dict[str, Path], tmp_path: Path) -> None:
    killer = Record(lambda event: event == "start evaluates constant" and len(killer.events) > 1)
    learner = learner_of(tmp_path / "run", "limit 7", killer)
    with pytest.raises(KilledError):
        learn(learner)
    loaded = Learner.load(tmp_path / "run", backbone=make_backbone("llama"))
    assert len(loaded.tasks) == 2
    learn(loaded).finish_evaluation()
    assert content(tmp_path / "run") == content(runs["limit 7"])


def test_a_sample_of_other_examples_is_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    learn(learner_of(tmp_path / "run", "limit 7"), more=True)
    run = results.open_run(tmp_path / "run")
    path = predictions_file(run.learned()[2], 0)
    rows = [row.model_dump() for row in read_records(Prediction, path)]
    shifted = [{**row, "example": row["example"] % 7 + 1} for row in rows]
    with run.locked():
        run.write({path: "".join(json.dumps(row) + "\n" for row in shifted).encode()})
    with pytest.raises(RetainError, match="other examples than the task's sample"):
        results.dropped(run)
