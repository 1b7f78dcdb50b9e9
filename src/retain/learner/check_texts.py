"""Checks that a task's texts survive: what is learned, asked, read back and scored is one text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from retain.backbone import Backbone
from retain.backbone.chat import EXCERPT
from retain.errors import RetainError
from retain.learner.check_metric import LABELS
from retain.metrics import text
from retain.tasks import Example, Task

UNKNOWN_LIMIT = 0.1
"""The share of unknown tokens in a task's prompts from which they are reported."""


@dataclass(frozen=True)
class Encoded:
    """An example as the model gets it.

    Attributes:
        prompt_length: the number of its prompt's tokens, before anything is cut.
        unknown: how many of these the vocabulary lacks.
        answer_lengths: for each reference the number of its tokens, without the end token.
        read: each reference as it is read back from its own tokens, up to one that ends answers.
    """

    prompt_length: int
    unknown: int
    answer_lengths: list[int]
    read: list[str]

    @classmethod
    def of(cls, example: Example, backbone: Backbone, all_references: bool = False) -> Encoded:
        """Encodes an example with its first reference, or with each of them in turn."""
        references = example.references if all_references else example.references[:1]
        pairs = [backbone.uncut(replace(example, references=(right,))) for right in references]
        prompt = pairs[0][0]
        return cls(
            len(prompt),
            prompt.count(backbone.tokenizer.unk_token_id),
            [len(answer) - 1 for _, answer in pairs],
            [backbone.decode(answer) for _, answer in pairs],
        )


def check_texts(
    task: Task,
    test: Sequence[Example],
    encoded_train: Sequence[Encoded],
    encoded_test: Sequence[Encoded],
    backbone: Backbone,
) -> list[str]:
    """Checks that an answer learned to the letter would be scored as right.

    Args:
        task: the task; its training examples are `encoded_train`.
        test: the test examples that are scored, `encoded_test`.
        encoded_train: as `Encoded.of` returns them.
        encoded_test: the same, with all references.
        backbone: has tokenizer and prompt format.

    Returns:
        A notice for each kind of text that is read otherwise than it is written.

    Raises:
        RetainError: when no test answer is read back as it is written, and the metric is one under
            which an answer is right or wrong.
    """
    lost = list(_lost(task, test, encoded_test))
    if len(lost) == len(test) and task.metric in LABELS:
        raise RetainError(
            f"task '{task.name}': no test answer survives the backbone's tokenizer: {lost[0]}; "
            "take another backbone, or rewrite the answers"
        )
    notices = []
    for kind, examples, encoded in (
        ("test", test, encoded_test),
        ("training", task.train, encoded_train),
    ):
        if lost := list(_lost(task, examples, encoded)):
            notices.append(
                f"{len(lost)} of {len(examples)} {kind} answers do not survive the backbone's "
                f"tokenizer, and no answer of the model can equal them: {lost[0]}"
            )
    length = sum(encoded.prompt_length for encoded in encoded_train)
    unknown = sum(encoded.unknown for encoded in encoded_train)
    if unknown > UNKNOWN_LIMIT * length:
        notices.append(
            f"{100 * unknown / length:.0f} % of the training prompts' tokens are unknown to the "
            "backbone's tokenizer, which reads all of them as one and the same"
        )
    return notices + list(_told(task, test, backbone))


def _lost(task: Task, examples: Sequence[Example], encoded: Sequence[Encoded]) -> Iterator[str]:
    """Yields a phrase on each example none of whose references is read back as it is written."""
    for example, each in zip(examples, encoded, strict=True):
        pairs = list(zip(example.references, each.read, strict=False))
        if not any(_is_same(task, right, read, example.prompt) for right, read in pairs):
            right, read = pairs[0]
            yield f"{right[:EXCERPT]!r} is read back as {read[:EXCERPT]!r}"


def _is_same(task: Task, right: str, read: str, prompt: str) -> bool:
    """Whether an answer that reads so scores as the reference itself does."""
    if text.canonical(right) == text.canonical(read):
        return True
    score, best = (
        text.score(task.metric, [answer], [[right]], [prompt], task.extract)
        for answer in (read, right)
    )
    return score >= best


def _told(task: Task, test: Sequence[Example], backbone: Backbone) -> Iterator[str]:
    """Yields notices on how texts are read that hold special tokens, or are conversations."""
    examples = (*task.train, *test)
    spelled = [token for example in examples if (token := _spelled(example, backbone))]
    if spelled:
        yield (
            f"{len(spelled)} of {len(examples)} examples spell special tokens, such as "
            f"{spelled[0]!r}; they are read as text (conversations belong in 'messages')"
        )
    conversations = [example for example in examples if example.messages]
    template = backbone.tokenizer.chat_template
    if conversations and not template and backbone.prompt.chat_template == "auto":
        yield (
            f"{len(conversations)} examples are conversations; their turns are joined by line "
            "breaks, because the backbone's tokenizer has no chat template"
        )
    if template and "strftime_now" in str(template) and any(map(backbone.is_templated, examples)):
        yield "the chat template writes the date, so prompts differ from one day to another"
    yield from _left_out(filter(backbone.is_templated, conversations), backbone)


def _left_out(conversations: Iterable[Example], backbone: Backbone) -> Iterator[str]:
    """Yields a notice on turns that the chat template does not write, such as a system's."""
    alike: dict[tuple[str, ...], list[Example]] = {}  # by the roles of their turns
    for example in conversations:
        alike.setdefault(tuple(turn["role"] for turn in example.messages), []).append(example)
    count, roles, shown = 0, set(), ""
    for examples in alike.values():
        with suppress(RetainError):  # a template may refuse turns without their texts
            if left_out := backbone.texts.left_out(examples[0]):
                count += len(examples)
                roles |= {turn["role"] for turn in left_out}
                shown = shown or repr(left_out[0]["content"][:EXCERPT])
    if count:
        yield (
            f"the chat template leaves out turns of {count} conversations (role "
            f"{', '.join(sorted(roles))}), such as {shown}; the model does not read them"
        )


def _spelled(example: Example, backbone: Backbone) -> str | None:
    """Returns a special token that an example's texts spell."""
    turns = [turn["content"] for turn in example.messages]
    for each in (example.prompt, *turns, example.references[0]):
        if token := backbone.texts.spells(each):
            return token
    return None
