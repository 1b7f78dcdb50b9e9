"""What is odd about a task's examples, told before it is learned."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from retain.backbone import Backbone
from retain.backbone.backbone import SHOWN
from retain.errors import RetainError
from retain.evaluation import EvaluationConfig
from retain.metrics.text import says_nothing
from retain.tasks import Example, Task

KNOWN_LIMIT = 0.5
"""The share of test examples that may be among those that are learned from."""
EXACT = ("exact_match", "exact_answer")
"""Metrics under which an answer that is cut is wrong."""


def check_examples(
    task: Task, backbone: Backbone, evaluation: EvaluationConfig, stream: Sequence[Task] = ()
) -> list[str]:
    """Counts prompts and answers that are cut, and test examples that are learned from.

    Args:
        task: what is to be learned and tested.
        backbone: with the prompt's limits.
        evaluation: how test examples are answered.
        stream: the tasks that are learned with it.

    Returns:
        A sentence for each kind that there is.

    Raises:
        RetainError: when prompts and answers do not fit in the backbone's window, or the score
            would mean nothing: no test answer can be given whole, one is empty to the metric, or
            most test examples are among those that are learned from.
    """
    limits, test = backbone.prompt, task.test[: evaluation.limit]
    train = [backbone.lengths(example) for example in task.train]
    tested = [
        [backbone.lengths(replace(e, references=(text,))) for text in e.references] for e in test
    ]
    prompts = [lengths[0][0] for lengths in tested]
    answers = [min(answer for _, answer in lengths) for lengths in tested]
    virtual, cut = backbone.virtual_tokens, limits.max_prompt_tokens
    for prompt, answer in train:
        answer = min(answer, limits.max_answer_tokens) + 1
        backbone.refuse_longer(virtual + min(prompt, cut), answer, f"task '{task.name}'")
    backbone.refuse_longer(
        virtual + min(max(prompts), cut),
        evaluation.max_new_tokens,
        f"task '{task.name}'",
        "evaluation.max_new_tokens",
    )
    fits = [length <= evaluation.max_new_tokens for length in answers]
    if not any(fits) and task.metric in EXACT:
        raise RetainError(
            f"task '{task.name}': no test answer fits in evaluation.max_new_tokens "
            f"({evaluation.max_new_tokens}); raise it to {min(answers)} or more"
        )
    for example in test:
        for text in example.references:
            if says_nothing(task.metric, text):
                raise RetainError(
                    f"task '{task.name}': the test answer {text!r} to {example.prompt[:SHOWN]!r} "
                    f"is empty to {task.metric}, which leaves punctuation out; correct it, or "
                    "take the metric exact_answer"
                )
    known = _known(test, (*task.train, *task.dev))
    if known > KNOWN_LIMIT * len(test):
        raise RetainError(
            f"task '{task.name}': {known} of {len(test)} test examples are learned from too, so "
            "its score would mean nothing; give it others"
        )
    others = [e for other in stream if other.name != task.name for e in other.train]
    cut_prompts = sum(prompt > limits.max_prompt_tokens for prompt, _ in train)
    cut_tests = sum(prompt > limits.max_prompt_tokens for prompt in prompts)
    cut_answers = sum(answer > limits.max_answer_tokens for _, answer in train)
    counts = (
        (cut_prompts, train, "training prompts are cut: prompt.max_prompt_tokens"),
        (cut_tests, test, "test prompts are cut: prompt.max_prompt_tokens"),
        (cut_answers, train, "training answers are cut: prompt.max_answer_tokens"),
        (fits.count(False), test, "test answers cannot be given whole: evaluation.max_new_tokens"),
        (known, test, "test examples are learned from too"),
        (_known(test, others), test, "test examples are learned from in other tasks"),
    )
    return [f"{task.name}: {n} of {len(rows)} {what}" for n, rows, what in counts if n]


def _known(test: Sequence[Example], learned: Iterable[Example]) -> int:
    """How many have the prompt of an example that is learned from, and its answer is right."""
    answers: dict[str, set[str]] = {}
    for example in learned:
        answers.setdefault(example.prompt, set()).add(example.references[0])
    return sum(bool(answers.get(e.prompt, set()) & set(e.references)) for e in test)
