"""What is odd about a task's examples, told before it is learned."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from retain.backbone import Backbone
from retain.backbone.backbone import EXCERPT
from retain.errors import RetainError
from retain.evaluation.answers import EvaluationConfig
from retain.metrics.text import is_empty_reference
from retain.tasks import Example, Task

KNOWN_LIMIT = 0.5
"""The share of test examples that may be among those that are learned from."""
EXACT = ("exact_match", "exact_answer")
"""Metrics under which an answer that is cut is wrong."""
CUT = " and cut; the longest has {}"
UNSCORED = ": set it to at least {} to score them"


def check_examples(
    task: Task, backbone: Backbone, evaluation: EvaluationConfig, stream: Sequence[Task] = ()
) -> list[str]:
    """Counts prompts and answers that are cut, and test examples that are learned from.

    Args:
        task: what is to be learned and tested.
        backbone: with the prompt's limits.
        evaluation: how test examples are answered, where the task has no length of its own.
        stream: the tasks that are learned with it.

    Returns:
        A sentence for each kind that there is.

    Raises:
        RetainError: when prompts and answers do not fit in the backbone's window, or the score
            would mean nothing: no test answer can be given whole, one is empty to the metric, or
            most test examples are among those that are learned from.
    """
    test, most_new = task.test[: evaluation.limit], evaluation.for_task(task).max_new_tokens
    most_prompt, most_answer = backbone.prompt.max_prompt_tokens, backbone.prompt.max_answer_tokens
    train = [backbone.lengths(example) for example in task.train]
    tested = [
        [backbone.lengths(replace(e, references=(text,))) for text in e.references] for e in test
    ]
    prompts = [lengths[0][0] for lengths in tested]
    answers = [min(answer for _, answer in lengths) for lengths in tested]
    virtual = backbone.virtual_tokens
    for prompt, answer in train:
        answer = min(answer, most_answer) + 1
        backbone.refuse_longer(virtual + min(prompt, most_prompt), answer, f"task '{task.name}'")
    backbone.refuse_longer(
        virtual + min(max(prompts), most_prompt),
        most_new,
        f"task '{task.name}'",
        "max_new_tokens",
    )
    if min(answers) > most_new and task.metric in EXACT:
        needed = max(answers)
        raise RetainError(
            f"task '{task.name}': no test answer fits in max_new_tokens ({most_new}); set this "
            f"task's max_new_tokens to {needed} (retain learn … --set max_new_tokens={needed})"
        )
    for example in test:
        for text in example.references:
            if is_empty_reference(task.metric, text):
                raise RetainError(
                    f"task '{task.name}': the test answer {text!r} to {example.prompt[:EXCERPT]!r} "
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
    cuts = (
        ("training prompts", [n for n, _ in train], "prompt.max_prompt_tokens", most_prompt, CUT),
        ("test prompts", prompts, "prompt.max_prompt_tokens", most_prompt, CUT),
        ("training answers", [n for _, n in train], "prompt.max_answer_tokens", most_answer, CUT),
        ("test answers", answers, "max_new_tokens", most_new, UNSCORED),
    )
    said = []
    for what, lengths, setting, limit, then in cuts:
        if count := sum(length > limit for length in lengths):
            found = f"{count} of {len(lengths)} {what} are longer than {setting} ({limit})"
            said.append(found + then.format(max(lengths)))
    for count, where in ((known, "too"), (_known(test, others), "in other tasks")):
        if count:
            said.append(f"{count} of {len(test)} test examples are learned from {where}")
    return [f"{task.name}: {sentence}" for sentence in said]


def _known(test: Sequence[Example], learned: Iterable[Example]) -> int:
    """How many have the prompt of an example that is learned from, and its answer is right."""
    answers: dict[str, set[str]] = {}
    for example in learned:
        answers.setdefault(example.prompt, set()).add(example.references[0])
    return sum(bool(answers.get(e.prompt, set()) & set(e.references)) for e in test)
