"""What is cut from an answer before it is scored: where it is set, and that both sides agree."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retain.backbone import Backbone
from retain.errors import RetainError
from retain.evaluation.answers import EvaluationConfig
from retain.experiment.config import TaskConfig
from retain.experiment.files import read_file
from retain.experiment.read_tasks import load_stream, read_task, with_defaults
from retain.learner.check_examples import check_examples
from retain.learner.learner import Learner
from retain.metrics.extract import EXTRACTIONS, short_answer
from retain.metrics.text import METRICS, canonical, score, scored_part
from retain.report.reader import summarise
from retain.runs import results
from retain.sweep.measure import measure
from retain.tasks import Example, Task
from retain.testing.tiny import make_backbone, make_learner, make_task

EVALUATION = EvaluationConfig(max_new_tokens=64)

# -- what is cut


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("A", "A"),
        ("A\nReasoning: because", "A"),
        ("x = 1\nReasoning: a\nReasoning: b", "x = 1"),
        ("2 and 3 are 5.\nAnswer: 5", "5"),
        ("2 and 3\nAnswer: 5\nAnswer: 6", "5"),  # up to the next, as published
        ("A\nReasoning: it is so\nAnswer: B", "A"),  # the reasoning is looked for first
        ("因为\n回答：B", "B"),
        ("因为\n答案: C", "C"),
        ("一\n答案: C\n回答: B", "B"),
        ("Answer: 5", "Answer: 5"),  # no line before it
        ("the Answer: 5", "the Answer: 5"),
        ("A Reasoning: because", "A Reasoning: because"),
        ("比例：一", "比例:一"),
        ("so\nAnswer:", ""),
    ],
)
def test_short_answer(text: str, part: str) -> None:
    assert scored_part(text, "short_answer") == part


@pytest.mark.parametrize("extract", EXTRACTIONS)
@given(text=st.text("aB .,：:\n") | st.sampled_from(["a\nAnswer: b\n", "a\nReasoning: b"]))
def test_every_text_has_a_part(extract: str, text: str) -> None:
    part = scored_part(text, extract)
    assert part == canonical(part)
    assert part in canonical(text).replace("：", ":") or part == canonical(text)


@pytest.mark.parametrize("metric", sorted(METRICS.keys() - {"sari"}))
def test_answers_and_references_are_cut_alike(metric: str) -> None:
    texts = ["B\nReasoning: one", "two\nAnswer: B", "B"]
    for answer in texts:
        for reference in texts:
            value = score(metric, [answer], [[reference]], ["p"], "short_answer")
            assert value == pytest.approx(100), (answer, reference)
    assert score(metric, ["C\nReasoning: B"], [["B"]], ["p"], "short_answer") < 100
    if metric not in ("first_letter",):
        assert score(metric, [texts[0]], [["B"]], ["p"]) < 100  # whole by default


def test_sari_sees_the_short_answer() -> None:
    prompt, reference = "About 95 species are currently accepted.", "About 95 are known."
    cut = score("sari", [f"{reference}\nReasoning: short"], [[reference]], [prompt], "short_answer")
    assert cut == score("sari", [reference], [[reference]], [prompt]) > 99


def seekr_scores(task: str, answers: Sequence[str], labels: Sequence[str]) -> float:
    """Accuracy as re_eval.py and its scorers compute it, written from their description."""
    right = 0
    for answer, label in zip(answers, labels, strict=True):
        part = short_answer(answer).strip() or " "
        if task in ("C-STANCE", "FOMC", "ScienceQA"):
            part = part[0]
        if task == "ScienceQA":
            label = label[0]
        right += part == label
    return 100 * right / len(answers)


@pytest.mark.parametrize(
    ("task", "metric"),
    [
        ("C-STANCE", "first_letter"),
        ("FOMC", "first_letter"),
        ("ScienceQA", "first_letter"),
        ("NumGLUE-cm", "exact_answer"),
        ("task363", "exact_answer"),
    ],
)
def test_accuracy_is_seekr_s(task: str, metric: str) -> None:
    answers = ["A\nReasoning: x", "B", "so\nAnswer: C", "Because A", "", "A. it", "C \n", "b"]
    labels = ["A", "B", "C", "A", "A", "A", "C", "B"]
    ours = score(metric, answers, [[label] for label in labels], [""] * 8, "short_answer")
    assert ours == seekr_scores(task, answers, labels) == (62.5 if metric[0] == "f" else 50.0)


# -- where it is set


def test_a_task_names_it(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"prompt": f"p{i}", "answer": f"{i}"} for i in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    of_file = {"path": str(path), "extract": "short_answer"}
    assert read_task(TaskConfig(path=str(path))).extract == "whole"
    assert load_stream([of_file])[0].extract == "short_answer"
    assert Task.from_jsonl(path, extract="short_answer").extract == "short_answer"
    assert Task.from_dataset(rows, "t", extract="short_answer").extract == "short_answer"
    says = "'extract': unknown; choose one of whole, short_answer"
    with pytest.raises(RetainError, match=says):
        load_stream([{**of_file, "extract": "first"}])
    with pytest.raises(RetainError, match="task 'copy': extract 'first' is unknown; choose one of"):
        replace(make_task("copy"), extract="first")


STREAMS = Path(__file__).parents[2] / "configs/streams"
ACCURACY = ("task363", "task875", "task195")


def scorers(stream: str) -> dict[str, tuple[str, str]]:
    """Metric and extraction by task, with the reader's defaults."""
    file = read_file(STREAMS / f"{stream}.yaml")
    tasks = [with_defaults(TaskConfig(**task)) for task in file.tasks]
    return {str(task.name): (str(task.metric), str(task.extract)) for task in tasks}


def test_streams_of_seekr_have_its_scorer() -> None:
    short = "short_answer"
    letters = dict.fromkeys(("C-STANCE", "FOMC", "ScienceQA"), ("first_letter", short))
    assert scorers("trace") == {
        **letters,
        "MeetingBank": ("rouge_l_union", short),
        "Py150": ("edit_similarity", short),
        "NumGLUE-cm": ("exact_answer", short),
        "NumGLUE-ds": ("exact_answer", short),
        "20Minuten": ("sari", short),
    }
    of_superni = scorers("superni-12")
    assert len(of_superni) == 12
    for task, scorer in of_superni.items():
        is_label = task.startswith(ACCURACY)
        assert scorer == ("exact_answer" if is_label else "rouge_l_union", short), task


def test_trace_has_a_file_with_its_own_scorer() -> None:
    """It takes the stream's place: tasks, orders and lengths are the same."""
    seekr, own = (read_file(STREAMS / f"{name}.yaml") for name in ("trace", "trace-original"))
    same = ("stream", "orders", "prompt", "evaluation")
    assert [getattr(own, field) for field in same] == [getattr(seekr, field) for field in same]
    assert [task["path"] for task in own.tasks] == [task["path"] for task in seekr.tasks]
    assert scorers("trace-original") == {
        "C-STANCE": ("exact_answer", "whole"),
        "FOMC": ("exact_answer", "whole"),
        "MeetingBank": ("rouge_l_union", "whole"),
        "Py150": ("edit_similarity", "whole"),
        "ScienceQA": ("first_letter", "whole"),
        "NumGLUE-cm": ("exact_answer", "whole"),
        "NumGLUE-ds": ("exact_answer", "whole"),
        "20Minuten": ("sari", "whole"),
    }


@pytest.mark.parametrize(
    "stream", ["trace", "trace-original", "superni", "superni-12", "long-sequence", "cl-standard"]
)
def test_a_benchmark_s_stream_says_whose_scorer_it_has(stream: str) -> None:
    lines = (STREAMS / f"{stream}.yaml").read_text().splitlines()
    assert sum(line.startswith("# Scorer: ") for line in lines) == 1


def reasoned(name: str) -> Task:
    """A task with reasons after its training answers, and whose test answers have none."""
    task = make_task(name)
    train = [replace(e, references=(f"{e.references[0]}\nReasoning: so",)) for e in task.train]
    return replace(task, train=train, extract="short_answer", max_new_tokens=24)


def test_a_run_scores_the_part_and_keeps_the_whole_answer(tmp_path: Path) -> None:
    backbone = make_backbone("llama")
    learner = make_learner("seqft", backbone, tmp_path / "run", max_steps=60, learning_rate=5e-3)
    learner.learn(reasoned("constant"))
    (row,) = learner.scores["matrix"]
    assert row == [100.0]
    run = results.open_run(tmp_path / "run")
    (path,) = results.newest_predictions(run).values()
    predictions = [json.loads(line) for line in path.read_text().splitlines()]
    assert {row["prediction"] for row in predictions} == {"red\nReasoning: so"}
    assert {row["score"] for row in predictions} == {100.0}
    record = results.task_record(run, run.learned()[0])
    assert (record.extract, record.scorer) == ("short_answer", "exact_match (short_answer)")
    assert results.comparable_keys(run)[0][2] == record.scorer
    (examined,) = summarise(tmp_path / "run").examined
    assert examined.metric == record.scorer
    assert measure(run).rouge_l == 100.0
    again = Learner.load(tmp_path / "run", backbone=make_backbone("llama"))
    assert again.tasks[0].extract == "short_answer"
    assert again.evaluate() == {"constant": 100.0}


# -- checked before training


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    """A tokenizer that knows printable ASCII and the line break."""
    return make_backbone("llama")


def task_of(learned: Sequence[str], tested: Sequence[str], metric: str = "exact_answer") -> Task:
    train = [Example(f"Learn {i}", (text,)) for i, text in enumerate(learned)]
    test = [Example(f"Is {i}?", (text,)) for i, text in enumerate(tested)]
    return Task("t", train, train[:1], test, metric, "short_answer")


def said(backbone: Backbone, task: Task) -> list[str]:
    return check_examples(task, backbone, EVALUATION)


def test_reasons_are_no_other_answers(backbone: Backbone) -> None:
    learned = ["yes\nReasoning: a", "no\nReasoning: b", "x\nAnswer: yes", "no"]
    assert said(backbone, task_of(learned, ["yes", "no"])) == []
    (line,) = said(backbone, task_of(learned, ["-1", "-1"]))
    assert "no test answer (such as '-1') is ever a training answer" in line
    (line,) = said(backbone, task_of(learned, ["yes", "yep"], "first_letter"))
    assert "cannot tell the answers 'yes' and 'yep' apart" in line


def test_a_reference_of_which_nothing_is_left_is_refused(backbone: Backbone) -> None:
    says = r"task 't': extract short_answer leaves nothing of the test answer 'so\\nAnswer:' to 'Is"
    with pytest.raises(RetainError, match=says):
        said(backbone, task_of(["a"], ["a", "so\nAnswer:"]))


def test_marks_that_the_tokenizer_loses_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """T5 reads no line break, so what it learns would not be cut where the reference is."""
    plain = make_backbone("llama")
    kept = plain.tokenizer.decode

    def without_breaks(*args: object, **kwargs: object) -> str:
        return str(kept(*args, **kwargs)).replace("\n", " ")

    monkeypatch.setattr(plain.tokenizer, "decode", without_breaks)
    lines = said(plain, task_of(["a\nReasoning: b", "b"], ["a", "b"]))
    assert lines == [
        "t: 1 of 2 training answers do not survive the backbone's tokenizer, and no answer of the "
        "model can equal them: 'a\\nReasoning: b' is read back as 'a Reasoning: b'"
    ]


def test_an_example_that_is_learned_with_its_reasons_is_seen(backbone: Backbone) -> None:
    test = [Example(f"Is {i}?", ("yes",)) for i in range(2)]
    train = [Example("Is 0?", ("yes\nReasoning: a",)), Example("Is 1?", ("so\nAnswer: yes",))]
    task = Task("t", train, train[:1], test, "exact_answer", "short_answer")
    with pytest.raises(RetainError, match="2 of 2 test examples are learned from too"):
        said(backbone, task)


def test_a_long_reference_may_be_answered_in_short(backbone: Backbone) -> None:
    """The reasons after an answer need not fit."""
    answers = ["yes\nReasoning: " + "so " * 40, "no\nReasoning: " + "so " * 40]
    lines = said(backbone, task_of(answers, answers))
    assert any("2 of 2 test answers are longer than max_new_tokens (64)" in line for line in lines)
