"""Checks that a task's texts survive: what is learned, asked, read back and scored is one text."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from retain.backbone import Backbone
from retain.backbone.chat import EXCERPT
from retain.errors import RetainError
from retain.learner.check_metric import LABELS
from retain.metrics import text
from retain.tasks import Example, Task

UNREAD_LIMIT = 0.1
"""The share of the characters of a task's prompts that are not read, from which it is told."""


@dataclass(frozen=True)
class Encoded:
    """An example as the model gets it.

    Attributes:
        prompt_length: the number of its prompt's tokens, before anything is cut.
        prompt_hash: equal for prompts of the same tokens.
        unread: how many characters of the user's text are not in these tokens.
        characters: how many that text has; case, accents and white space do not count.
        answer_lengths: for each reference the number of its tokens, without the end token.
        read: each reference as it is read back from its own tokens, up to one that ends answers.
    """

    prompt_length: int
    prompt_hash: int
    unread: int
    characters: int
    answer_lengths: list[int]
    read: list[str]

    @classmethod
    def of(cls, example: Example, backbone: Backbone, all_references: bool = False) -> Encoded:
        """Encodes an example with its first reference, or with each of them in turn."""
        references = example.references if all_references else example.references[:1]
        pairs = [backbone.uncut(replace(example, references=(right,))) for right in references]
        prompt = pairs[0][0]
        users = [turn["content"] for turn in example.messages if turn["role"] == "user"]
        written = _letters("".join(users) or example.prompt)
        read = backbone.tokenizer.decode(prompt, skip_special_tokens=True)
        return cls(
            len(prompt),
            hash(tuple(prompt)),
            (written - _letters(read)).total(),
            written.total(),
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
        unread = sum(each.unread for each in encoded)
        written = sum(each.characters for each in encoded)
        if unread > UNREAD_LIMIT * written:
            notices.append(
                f"the model does not read {100 * unread / written:.0f} % of the characters of the "
                f"{kind} prompts: the backbone's tokenizer does not know them, or its chat "
                "template leaves them out"
            )
    notices += _read_as_one((*task.train, *test), (*encoded_train, *encoded_test))
    return notices + list(_told(task, test, backbone))


def _letters(written: str) -> Counter[str]:
    """Counts the characters of a text, without what tokenizers change: case, accents, spaces."""
    plain = unicodedata.normalize("NFKD", written.casefold())
    return Counter(c for c in plain if not c.isspace() and not unicodedata.combining(c))


def _texts(example: Example) -> list[str]:
    return [turn["content"] for turn in example.messages] or [example.prompt]


def _read_as_one(examples: Sequence[Example], encoded: Sequence[Encoded]) -> Iterator[str]:
    """Yields a notice on different prompts that have other answers and the same tokens."""
    alike: dict[int, list[Example]] = {}
    for example, each in zip(examples, encoded, strict=True):
        alike.setdefault(each.prompt_hash, []).append(example)
    pairs = []
    for first, *others in alike.values():
        rights = {*map(text.canonical, first.references)}
        for other in others:
            is_other = rights.isdisjoint(map(text.canonical, other.references))
            if is_other and _texts(other) != _texts(first):
                pairs.append((first.prompt[:EXCERPT], other.prompt[:EXCERPT]))
    if pairs:
        yield (
            f"{len(pairs)} of {len(examples)} prompts are to the backbone's tokenizer the same as "
            "one that has another answer: {!r} and {!r} have the same tokens".format(*pairs[0])
        )


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
    hidden = [t for e in examples for t in (*_texts(e), *e.references) if backbone.texts.hides(t)]
    if hidden:
        yield (
            f"{len(hidden)} texts hold what the tokenizer's normalizer makes a special token of, "
            f"such as {hidden[0][:EXCERPT]!r}; the model reads that token and not the text"
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
    yield from _left_out(filter(backbone.is_templated, examples), backbone)


def _left_out(templated: Iterable[Example], backbone: Backbone) -> Iterator[str]:
    """Yields a notice on turns that the chat template does not write, such as a system's."""
    alike: dict[tuple[str, ...], list[Example]] = {}  # by the roles of their turns
    for example in templated:
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
            f"the chat template leaves out turns of {count} examples (role "
            f"{', '.join(sorted(roles))}), such as {shown}; the model does not read them"
        )


def _spelled(example: Example, backbone: Backbone) -> str | None:
    """Returns a special token that an example's texts spell."""
    for each in (example.prompt, *_texts(example), example.references[0]):
        if token := backbone.texts.spells(each):
            return token
    return None
