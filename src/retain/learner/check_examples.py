"""Checks of a task before it is learned: lengths, overlap, its texts and its metric."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from retain.backbone import Backbone
from retain.errors import RetainError
from retain.evaluation.answers import EvaluationConfig
from retain.learner.check_metric import check_metric
from retain.learner.check_texts import Encoded, check_texts
from retain.metrics.extract import WHOLE
from retain.metrics.text import canonical, scored_part
from retain.tasks import Example, Task

SEEN_LIMIT = 0.5
"""Largest share of test examples that may also be training or development examples."""
EXACT = ("exact_match", "exact_answer")
"""Metrics for which a truncated answer is wrong."""
CUT = " and cut; the longest has {}"
UNSCORED = ": set it to at least {} to score them"


def check_examples(
    task: Task,
    backbone: Backbone,
    evaluation: EvaluationConfig,
    stream: Sequence[Task] = (),
    begun: bool = False,
) -> list[str]:
    """Counts truncated prompts and answers, and test examples that are also trained on.

    Args:
        task: the task to check.
        backbone: has the tokenizer and the limits of prompt and answer.
        evaluation: how test examples are answered; the task's `max_new_tokens` comes first.
        stream: the tasks that are learned together with this one.
        begun: whether the run has begun, so that its `prompt` is fixed.

    Returns:
        A notice for each kind of problem found.

    Raises:
        RetainError: when prompts and answers exceed the backbone's context window, or the score
            would mean nothing: no test answer fits in `max_new_tokens`, the metric or the tokenizer
            cannot represent the answers, most test examples are also trained on, or every answer
            stands in its conversation.
    """
    test, most_new = task.test[: evaluation.limit], evaluation.for_task(task).max_new_tokens
    most_prompt, most_answer = backbone.prompt.max_prompt_tokens, backbone.prompt.max_answer_tokens
    encoded_train = list(_encoded(task, "training", task.train, backbone))
    encoded_test = list(_encoded(task, "test", test, backbone, all_references=True))
    for _ in _encoded(task, "development", task.dev, backbone):
        pass  # what cannot be encoded is refused
    train = [(encoded.prompt_length, encoded.answer_lengths[0]) for encoded in encoded_train]
    prompts = [encoded.prompt_length for encoded in encoded_test]
    answers = [min(encoded.answer_lengths) for encoded in encoded_test]
    virtual = backbone.virtual_tokens
    for prompt, answer in train:
        answer = min(answer, most_answer) + 1
        read = virtual + min(prompt, most_prompt)
        backbone.refuse_longer(read, answer, f"task '{task.name}'", begun=begun)
    backbone.refuse_longer(
        virtual + min(max(prompts), most_prompt),
        most_new,
        f"task '{task.name}'",
        "max_new_tokens",
        begun,
    )
    if min(answers) > most_new and task.metric in EXACT and task.extract == WHOLE:
        needed = max(answers)
        raise RetainError(
            f"task '{task.name}': no test answer fits in max_new_tokens ({most_new}); set this "
            f"task's max_new_tokens to {needed} (retain learn … --set max_new_tokens={needed})"
        )
    notices = check_metric(task, test)
    notices += _conversations(task, test, backbone)
    notices += check_texts(task, test, encoded_train, encoded_test, backbone)
    seen = _count_seen(task, test, (*task.train, *task.dev))
    if seen > SEEN_LIMIT * len(test):
        raise RetainError(
            f"task '{task.name}': {seen} of {len(test)} test examples are learned from too, so "
            "its score would mean nothing; give it others"
        )
    other_examples = [e for other in stream if other.name != task.name for e in other.train]
    limits = (
        ("training prompts", [n for n, _ in train], "prompt.max_prompt_tokens", most_prompt, CUT),
        ("test prompts", prompts, "prompt.max_prompt_tokens", most_prompt, CUT),
        ("training answers", [n for _, n in train], "prompt.max_answer_tokens", most_answer, CUT),
        ("test answers", answers, "max_new_tokens", most_new, UNSCORED),
    )
    for kind, lengths, setting, limit, consequence in limits:
        if count := sum(length > limit for length in lengths):
            notice = f"{count} of {len(lengths)} {kind} are longer than {setting} ({limit})"
            notices.append(notice + consequence.format(max(lengths)))
    for count, where in (
        (seen, "too"),
        (_count_seen(task, test, other_examples), "in other tasks"),
    ):
        if count:
            notices.append(f"{count} of {len(test)} test examples are learned from {where}")
    return [f"{task.name}: {sentence}" for sentence in notices]


def _conversations(task: Task, test: Sequence[Example], backbone: Backbone) -> Iterator[str]:
    """Yields notices on conversations that have their answer, or stand beside plain prompts."""
    examples = (*task.train, *test)
    told = sum(map(_is_told, examples))
    if told == len(examples):
        raise RetainError(
            f"task '{task.name}': in every example the answer is the assistant's last turn in "
            "'messages', where the model reads it; end 'messages' with this turn, or remove it"
        )
    if told > SEEN_LIMIT * len(examples):  # of a few labels, some are those of the turn before
        yield (
            f"{told} of {len(examples)} examples have their answer as the assistant's last turn in "
            "'messages', where the model reads it"
        )
    counts = [sum(map(backbone.is_templated, split)) for split in (task.train, test)]
    if 0 < sum(counts) < len(examples):
        yield (
            f"{counts[0]} of {len(task.train)} training and {counts[1]} of {len(test)} test "
            "examples are written with the chat template, the others without; give all as "
            "'messages' or all as 'prompt', or set prompt.chat_template to true or false"
        )


def _is_told(example: Example) -> bool:
    """Whether the assistant's last turn in the conversation is a right answer."""
    said = [turn["content"] for turn in example.messages if turn["role"] == "assistant"]
    return bool(said) and canonical(said[-1]) in map(canonical, example.references)


def _encoded(
    task: Task,
    kind: str,
    examples: Iterable[Example],
    backbone: Backbone,
    all_references: bool = False,
) -> Iterator[Encoded]:
    """Encodes examples; an error names the task and the `kind` of the example."""
    for example in examples:
        try:
            yield Encoded.of(example, backbone, all_references)
        except RetainError as error:
            raise RetainError(f"task '{task.name}', a {kind} example: {error}") from None


def _count_seen(task: Task, test: Sequence[Example], trained_on: Iterable[Example]) -> int:
    """Counts test examples whose prompt is trained on with an answer that is correct for them."""
    answers: dict[str, set[str]] = {}
    for example in trained_on:
        answers.setdefault(example.prompt, set()).add(
            scored_part(example.references[0], task.extract)
        )
    return sum(
        any(scored_part(right, task.extract) in answers[e.prompt] for right in e.references)
        for e in test
        if e.prompt in answers
    )
