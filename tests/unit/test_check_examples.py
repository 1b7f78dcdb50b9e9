"""What would make a score meaningless is refused; what is only odd is counted and told."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from retain.backbone import Backbone, PromptConfig
from retain.errors import RetainError
from retain.evaluation.answers import EvaluationConfig
from retain.learner.check_examples import check_examples
from retain.tasks import Example, Task
from retain.testing.tiny import make_backbone, make_task

TASK = make_task("copy")  # a token a character; every prompt is longer than 16

MANY = EvaluationConfig(max_new_tokens=64)


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
        "copy: 12 of 12 training prompts are longer than prompt.max_prompt_tokens (16) and cut; "
        "the longest has 20",
        "copy: 4 of 4 test prompts are longer than prompt.max_prompt_tokens (16) and cut; "
        "the longest has 21",
        f"copy: {len(long)} of 12 training answers are longer than prompt.max_answer_tokens (4) "
        "and cut; the longest has 5",
        "copy: 1 of 4 test answers are longer than max_new_tokens (5): set it to at least 6 to "
        "score them",
    ]


def test_answers_of_which_none_can_be_given_are_refused(backbone: Backbone) -> None:
    evaluation = EvaluationConfig(max_new_tokens=3)
    says = (
        "task 'copy': no test answer fits in max_new_tokens (3); set this task's max_new_tokens to "
        "6 (retain learn … --set max_new_tokens=6)"
    )
    with pytest.raises(RetainError, match=f"^{re.escape(says)}$"):
        check_examples(TASK, backbone, evaluation)
    assert check_examples(replace(TASK, max_new_tokens=6), backbone, evaluation) == []
    (said,) = check_examples(replace(TASK, metric="rouge_l"), backbone, evaluation)
    assert said.startswith("copy: 4 of 4 test answers are longer than max_new_tokens (3): set it")


def test_a_task_s_own_length_has_to_fit_in_the_window(narrow: Backbone) -> None:
    says = (
        "^task 'copy': .* and 250 answer tokens do not fit .* lower prompt.max_prompt_tokens to 6"
    )
    with pytest.raises(RetainError, match=says):
        check_examples(replace(TASK, max_new_tokens=250), narrow, EvaluationConfig())
    # A run that has begun refuses other settings of its prompts.
    with pytest.raises(RetainError, match=r"250 answer tokens do not fit .*; shorten its prompts "):
        check_examples(replace(TASK, max_new_tokens=250), narrow, EvaluationConfig(), begun=True)


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
    other = [Example(e.prompt, (f"x{i}",)) for i, e in enumerate(TASK.train[:4])]
    assert check_examples(replace(TASK, test=other), backbone, EvaluationConfig()) == []


def test_examples_that_another_task_learns_from(backbone: Backbone) -> None:
    other = replace(make_task("letter"), train=[*make_task("letter").train, *TASK.test[:3]])
    assert check_examples(TASK, backbone, EvaluationConfig(), [TASK, other]) == [
        "copy: 3 of 4 test examples are learned from in other tasks"
    ]


@pytest.mark.parametrize("references", [("?!",), ("a", " - ")])
def test_an_answer_that_is_empty_to_the_metric(
    references: tuple[str, ...], backbone: Backbone
) -> None:
    task = replace(TASK, test=[*TASK.test[:3], Example("say it", references)])
    says = rf"'copy': the test answer '{re.escape(references[-1])}' to 'say it' is empty to exact_m"
    with pytest.raises(RetainError, match=says):
        check_examples(task, backbone, EvaluationConfig())
    check_examples(replace(task, metric="exact_answer"), backbone, EvaluationConfig())
    check_examples(task, backbone, EvaluationConfig(limit=3))  # nobody asks it


def longer(task: Task, split: str, prompt: int, answer: int = 1) -> Task:
    """With one example of so many tokens more in a split."""
    added = Example("p" * prompt, ("a" * answer,))
    return replace(task, **{split: [*getattr(task, split), added]})


@pytest.fixture
def narrow() -> Backbone:
    """256 positions, and limits beyond them."""
    backbone = make_backbone("gpt2")
    backbone.prompt = PromptConfig(max_prompt_tokens=300, max_answer_tokens=400)
    return backbone


@pytest.mark.parametrize(
    ("split", "prompt", "answer", "says"),
    [
        # A space before the answer and its end are tokens too.
        ("train", 254, 1, "254 .* and 3 .* 256 positions .* lower prompt.max_prompt_tokens to 253"),
        ("train", 100, 200, "100 .* and 202 .* lower prompt.max_prompt_tokens to 54"),
        ("train", 10, 300, "10 .* and 302 .* lower prompt.max_answer_tokens"),
        ("test", 225, 1, "225 .* and 32 .* lower prompt.max_prompt_tokens to 224"),
    ],
)
def test_a_prompt_beyond_the_window(
    split: str, prompt: int, answer: int, says: str, narrow: Backbone
) -> None:
    task = longer(TASK, split, prompt, answer)
    with pytest.raises(RetainError, match=f"^task 'copy': {says}"):
        check_examples(task, narrow, EvaluationConfig())
    check_examples(task, make_backbone("t5"), EvaluationConfig())  # relative positions


@pytest.mark.parametrize(("split", "prompt"), [("train", 253), ("test", 224)])
def test_virtual_tokens_count_in_the_window(split: str, prompt: int, narrow: Backbone) -> None:
    task = longer(TASK, split, prompt)
    check_examples(task, narrow, EvaluationConfig())
    narrow.virtual_tokens = 1
    limit = f"lower prompt.max_prompt_tokens to {prompt - 1}"
    says = f"^task 'copy': {prompt + 1} prompt tokens .* {limit}"
    with pytest.raises(RetainError, match=says):
        check_examples(task, narrow, EvaluationConfig())


def test_a_cut_prompt_fits(narrow: Backbone) -> None:
    narrow.prompt = PromptConfig(max_prompt_tokens=200)
    assert check_examples(longer(TASK, "test", 300), narrow, EvaluationConfig()) == [
        "copy: 1 of 5 test prompts are longer than prompt.max_prompt_tokens (200) and cut; "
        "the longest has 300"
    ]


def chat(example: Example, said: str = "") -> Example:
    turns = [("user", example.prompt), *([("assistant", said), ("user", "!")] if said else [])]
    messages = tuple({"role": role, "content": content} for role, content in turns)
    return replace(example, messages=messages)


def test_an_answer_that_the_conversation_has(backbone: Backbone) -> None:
    backbone.prompt = PromptConfig(chat_template=False)
    told = {
        split: [chat(e, f" {e.references[0]}\n") for e in getattr(TASK, split)]
        for split in ("train", "test")
    }
    with pytest.raises(RetainError, match="task 'copy': in every example the answer is the assist"):
        check_examples(replace(TASK, **told), backbone, EvaluationConfig())
    other = [chat(e, "no") for e in TASK.test]
    said = check_examples(replace(TASK, train=told["train"], test=other), backbone, MANY)
    assert any("12 of 16 examples have their answer as the assistant's last" in n for n in said)
    said = check_examples(replace(TASK, train=TASK.train, test=told["test"]), backbone, MANY)
    assert not any("have their answer" in notice for notice in said)


@pytest.mark.parametrize(("train", "test"), [(True, False), (False, True), (None, None)])
def test_conversations_beside_prompts_are_told(
    train: bool | None, test: bool | None, backbone: Backbone
) -> None:
    """None is a mixture within the split."""

    def formed(split: list[Example], chats: bool | None) -> list[Example]:
        return [chat(e) if chats or (chats is None and i % 2) else e for i, e in enumerate(split)]

    backbone.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    task = replace(TASK, train=formed(TASK.train, train), test=formed(TASK.test, test))
    said = check_examples(task, backbone, MANY)
    counts = {True: (12, 0), False: (0, 4), None: (6, 2)}[train]
    says = f"copy: {counts[0]} of 12 training and {counts[1]} of 4 test examples are written with"
    assert any(notice.startswith(says) for notice in said)
    for same in (True, False):
        task = replace(TASK, train=formed(TASK.train, same), test=formed(TASK.test, same))
        assert not any("written with" in n for n in check_examples(task, backbone, MANY))
