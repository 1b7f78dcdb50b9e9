"""Checks that a task's metric can judge its answers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations

from retain.backbone.chat import EXCERPT
from retain.errors import RetainError
from retain.metrics.extract import WHOLE
from retain.metrics.text import FORMS, METRICS, canonical, is_empty_reference, scored_part
from retain.tasks import Example, Task

COMPARED = 50
"""How many different answers, the most frequent ones, are compared with each other.

A metric of `LABELS` compares those of one form, among any number of answers.
"""
LABELS = ("exact_match", "exact_answer", "first_letter")
"""Metrics under which an answer is right or wrong, as for labels."""
FULL = 0.999
"""The score from which an answer counts as right; `rouge_l_union` gives at most 1 − 10⁻⁸."""
CHOICE = re.compile(r"\w(?:[.):]?$|[.):]\s|\s*\n)")
"""The letter of a choice, marked as one, before its text: "A. cat", but not "A cat" or "3.5"."""
MARKS = ".,;:!?\"'`()[]“”‘’"
"""Marks around words that seldom make another answer of them."""
OTHER = {
    "exact_match": "exact_answer",
    "rouge_l": "rouge_l_unicode",
    "rouge_l_union": "rouge_l_unicode",
}
"""The metric to take instead, where one cannot judge; `exact_answer` for others."""
HELD_BACK = 0.1
"""The share of a task's test answers from which one that is never learned is told."""


def check_metric(task: Task, test: Sequence[Example]) -> list[str]:
    """Checks that a right answer scores 100, and that a wrong one does not.

    Args:
        task: the task, with its training examples.
        test: the examples that are scored.

    Returns:
        A notice for each kind of answer that the metric cannot judge.

    Raises:
        RetainError: when an answer is empty to `exact_match`, or nothing of it is extracted, or no
            test answer scores 100 against itself.
    """
    for example in test:
        for right in example.references:
            says = f"the test answer {right[:EXCERPT]!r} to {example.prompt[:EXCERPT]!r}"
            part = scored_part(right, task.extract)
            if not part and task.extract != WHOLE:
                raise RetainError(
                    f"task '{task.name}': extract {task.extract} leaves nothing of {says}; correct "
                    f"it, or take extract {WHOLE}"
                )
            if is_empty_reference(task.metric, part):
                raise RetainError(
                    f"task '{task.name}': {says} is empty to {task.metric}, which leaves "
                    "punctuation out; correct it, or take the metric exact_answer"
                )
    return [*_unscored(task, test), *_same(task, test), *_never_learned(task, test)]


def _unscored(task: Task, test: Sequence[Example]) -> Iterator[str]:
    """Yields a notice on answers that score under 100 although they are right."""
    metric = task.metric
    if metric == "sari":  # it compares with the prompt and with all references together
        return
    low = []
    for example in test:
        rights = [scored_part(right, task.extract) for right in example.references]
        best = max(METRICS[metric](right, rights, example.prompt) for right in rights)
        if best < FULL:
            low.append((rights[0], best))
    if not low:
        return
    right, best = low[0]
    others = [OTHER.get(metric, "exact_answer"), "exact_answer"]
    other = next((name for name in others if _is_full(name, right)), "exact_answer")
    advice = f"take the metric {other}"
    if 2 * len(low) < len(test):
        advice = f"correct them, or {advice}"
    says = f"score under 100 by {metric} although they are right, such as {right[:EXCERPT]!r}"
    if len(low) == len(test):
        raise RetainError(
            f"task '{task.name}': all test answers {says} ({100 * best:.0f}); {advice}"
        )
    yield f"{len(low)} of {len(test)} test answers {says} ({100 * best:.0f}); {advice}"


def _is_full(metric: str, right: str) -> bool:
    right = canonical(right)
    return METRICS[metric](right, [right], "") >= FULL


def _same(task: Task, test: Sequence[Example]) -> Iterator[str]:
    """Yields a notice on different answers of which the metric takes one for the other."""
    metric = task.metric
    counts = Counter(scored_part(e.references[0], task.extract) for e in (*test, *task.train))
    together = {
        frozenset(scored_part(right, task.extract) for right in example.references)
        for example in test
        if len(example.references) > 1
    }
    groups: dict[str, list[str]] = {}
    # A graded metric takes a word's forms for one on purpose; among rare texts that is no mistake.
    most = None if metric in LABELS else COMPARED
    form = FORMS.get(metric, lambda _: "")
    for right, _ in counts.most_common(most):
        groups.setdefault(form(right), []).append(right)
    is_labels = _are_few(counts)
    pairs = [
        (one, other)
        for group in groups.values()
        for one, other in combinations(group[:COMPARED], 2)
        if max(METRICS[metric](one, [other], ""), METRICS[metric](other, [one], "")) >= FULL
        if not any({one, other} <= references for references in together)
        if not (metric == "first_letter" and CHOICE.match(one) and CHOICE.match(other))
        # Among many texts a difference of case or of a full stop is not one of meaning.
        if len(counts) <= COMPARED or is_labels or _words(one) != _words(other)
    ]
    if pairs:
        one, other = (repr(right[:EXCERPT]) for right in pairs[0])
        more = f" (and {len(pairs) - 1} more pairs)" if len(pairs) > 1 else ""
        yield (
            f"{metric} cannot tell the answers {one} and {other}{more} apart; if they are "
            "different answers, take the metric exact_answer"
        )


def _words(text: str) -> list[str]:
    """The words of a text, without case and the marks around them."""
    return [word.strip(MARKS) for word in text.casefold().split()]


def _are_few(counts: Counter[str]) -> bool:
    """Whether texts come again and again, as labels do."""
    return 2 * len(counts) <= counts.total()


def _never_learned(task: Task, test: Sequence[Example]) -> Iterator[str]:
    """Yields a notice when the task has few answers, and most test answers are none of them.

    Also when one test answer is often right and never learned, such as -1 for a label held back.
    """
    form = FORMS[task.metric] if task.metric in LABELS else str.casefold

    def forms(texts: Iterable[str]) -> list[str]:
        return [form(scored_part(text, task.extract)) for text in texts]

    learned = Counter(forms(example.references[0] for example in task.train))
    lacking = [e for e in test if learned.keys().isdisjoint(forms(e.references))]
    if not lacking:
        return
    unlearned = Counter(forms(example.references[0] for example in lacking))
    ((_, most),) = unlearned.most_common(1)
    is_one = len(unlearned) == 1 and most == len(test) > 1
    often = most > 1 and most >= HELD_BACK * len(test)
    if not is_one and not (_are_few(learned) and (often or 2 * len(lacking) > len(test))):
        return
    learns, asks = (repr(e.references[0][:EXCERPT]) for e in (task.train[0], lacking[0]))
    if len(lacking) == len(test):
        says = f"no test answer (such as {asks}) is ever a training answer"
    else:
        says = f"{len(lacking)} of {len(test)} test answers (such as {asks}) are never training"
        says += " answers"
    yield f"{says} (such as {learns}); are the test labels held back, or written otherwise?"
