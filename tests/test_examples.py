"""What would make a score meaningless is refused; what is only odd is counted and told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from retain.backbone import Backbone, PromptConfig
from retain.errors import RetainError
from retain.evaluation import EvaluationConfig
from retain.examples import check_examples
from retain.tasks import Example
from tests.tiny import make_backbone, make_task

TASK = make_task("copy")  # a token a character; every prompt is longer than 16


@pytest.fixture
def backbone() -> Backbone:
    return make_backbone("llama")


def test_nothing_odd_is_nothing_said(backbone: Backbone) -> None:
    assert check_examples(TASK, backbone, EvaluationConfig()) == []


def test_what_is_cut_is_counted(backbone: Backbone) -> None:
    backbone.prompt = PromptConfig(max_prompt_tokens=16, max_answer_tokens=4)
    long = [e for e in TASK.train if len(e.references[0]) >= 4]  # a space comes before it
    assert long
    assert check_examples(TASK, backbone, EvaluationConfig(max_new_tokens=5)) == [
        "copy: 12 of 12 training prompts are cut: prompt.max_prompt_tokens",
        f"copy: {len(long)} of 12 training answers are cut: prompt.max_answer_tokens",
        "copy: 1 of 4 test answers cannot be given whole: evaluation.max_new_tokens",
    ]


def test_answers_of_which_none_can_be_given_are_refused(backbone: Backbone) -> None:
    evaluation = EvaluationConfig(max_new_tokens=3)
    with pytest.raises(RetainError, match=r"no test answer fits .* \(3\); raise it to 4 or more"):
        check_examples(TASK, backbone, evaluation)
    (said,) = check_examples(replace(TASK, metric="rouge_l"), backbone, evaluation)
    assert said.startswith("copy: 4 of 4 test answers cannot be given whole")


@pytest.mark.parametrize(("shared", "refused"), [(1, False), (2, False), (3, True)])
def test_test_examples_that_are_learned_from(
    shared: int, refused: bool, backbone: Backbone
) -> None:
    task = replace(TASK, test=[*TASK.train[:shared], *TASK.test[shared:]])
    if refused:
        with pytest.raises(RetainError, match="3 of 4 test examples are learned from too"):
            check_examples(task, backbone, EvaluationConfig())
    else:
        said = check_examples(task, backbone, EvaluationConfig())
        assert said == [f"copy: {shared} of 4 test examples are learned from too"]


def test_another_answer_is_another_example(backbone: Backbone) -> None:
    other = [Example(e.prompt, ("x",)) for e in TASK.train[:4]]
    assert check_examples(replace(TASK, test=other), backbone, EvaluationConfig()) == []
