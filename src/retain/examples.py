"""What is odd about a task's examples, told before it is learned."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from retain.backbone import Backbone
from retain.errors import RetainError
from retain.evaluation import EvaluationConfig
from retain.tasks import Example, Task

KNOWN_LIMIT = 0.5
"""The share of test examples that may be among those that are learned from."""
EXACT = ("exact_match", "exact_answer")
"""Metrics under which an answer that is cut is wrong."""


def check_examples(task: Task, backbone: Backbone, evaluation: EvaluationConfig) -> list[str]:
    """Counts prompts and answers that are cut, and test examples that are learned from.

    Returns:
        A sentence for each kind that there is.

    Raises:
        RetainError: when the score would mean nothing: no test answer can be given whole, or most
            test examples are among those that are learned from.
    """
    limits, test = backbone.prompt, task.test[: evaluation.limit]
    train = [backbone.lengths(example) for example in task.train]
    answers = [
        min(backbone.lengths(replace(e, references=(text,)))[1] for text in e.references)
        for e in test
    ]
    fits = [length <= evaluation.max_new_tokens for length in answers]
    if not any(fits) and task.metric in EXACT:
        raise RetainError(
            f"task '{task.name}': no test answer fits in evaluation.max_new_tokens "
            f"({evaluation.max_new_tokens}); raise it to {min(answers)} or more"
        )
    known = _known(test, (*task.train, *task.dev))
    if known > KNOWN_LIMIT * len(test):
        raise RetainError(
            f"task '{task.name}': {known} of {len(test)} test examples are learned from too, so "
            "its score would mean nothing; give it others"
        )
    cut_prompts = sum(prompt > limits.max_prompt_tokens for prompt, _ in train)
    cut_answers = sum(answer > limits.max_answer_tokens for _, answer in train)
    counts = (
        (cut_prompts, train, "training prompts are cut: prompt.max_prompt_tokens"),
        (cut_answers, train, "training answers are cut: prompt.max_answer_tokens"),
        (fits.count(False), test, "test answers cannot be given whole: evaluation.max_new_tokens"),
        (known, test, "test examples are learned from too"),
    )
    return [f"{task.name}: {n} of {len(rows)} {what}" for n, rows, what in counts if n]


def _known(test: Sequence[Example], learned: Iterable[Example]) -> int:
    """How many have the prompt of an example that is learned from, and its answer is right."""
    answers: dict[str, set[str]] = {}
    for example in learned:
        answers.setdefault(example.prompt, set()).add(example.references[0])
    return sum(bool(answers.get(e.prompt, set()) & set(e.references)) for e in test)
