"""Pseudo-samples: inputs of a task that the model itself writes, from a trigger it learned on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import PositiveInt

from retain.backbone import Backbone, Features
from retain.backbone.backbone import IGNORED
from retain.errors import RetainError
from retain.methods.base import Options
from retain.metrics import generated
from retain.runs.records import Record
from retain.system.files import write_json
from retain.tasks import Example

QUALITY = "quality.json"
BATCH = 32
ROUNDS = 10
"""How often what is no use (empty, or a copy) is drawn again before giving up."""


class Quality(Record):
    """`quality.json`: measures of a task's pseudo-samples; see `metrics.generated`."""

    count: int
    auc: float | None
    distinct_2: float | None
    real_distinct_2: float | None
    duplicates: int
    copies: int
    dropped: int


class DrawConfig(Options):
    """How pseudo-samples are drawn; with `drop_copies` none is kept that is a training input."""

    top_k: PositiveInt = 20
    max_new_tokens: PositiveInt = 128
    drop_copies: bool = False


@dataclass(frozen=True)
class Written:
    """Pseudo-samples.

    Attributes:
        texts: none of them empty.
        dropped: how many copies of training inputs were left out.
    """

    texts: list[str]
    dropped: int


def generator_rows(backbone: Backbone, examples: Sequence[Example], trigger: str) -> list[Features]:
    """Rows that teach to write the examples' inputs when given the trigger."""
    longest = backbone.prompt.max_prompt_tokens
    pairs = [Example(trigger, (example.prompt,)) for example in examples]
    return [backbone.encode(pair, answer_limit=longest) for pair in pairs]


def taught_inputs(backbone: Backbone, rows: Sequence[Features]) -> list[str]:
    """The inputs of generator rows as the tokenizer gives them back, which is all it could write.

    What it cannot write (T5 has no line break) would tell any pseudo-sample from a real input.
    """
    ids = [[i for i in row["labels"] if i != IGNORED] for row in rows]
    texts = backbone.tokenizer.batch_decode(ids, skip_special_tokens=True)
    return [text.strip() for text in texts]


def write_inputs(
    backbone: Backbone,
    trigger: str,
    switch_on: Callable[[int], object],
    count: int,
    options: DrawConfig,
    taught: Sequence[str],
    remedy: str,
) -> Written:
    """Samples `count` inputs; fewer where copies are dropped and little else comes.

    Args:
        backbone: with what was learned for the trigger.
        trigger: the prompt.
        switch_on: called with the size of each batch, before it is written.
        count: how many.
        options: how they are drawn.
        taught: the training inputs, as `taught_inputs` gives them.
        remedy: an option that makes a better generator when it is higher, for the error.

    Raises:
        RetainError: when what it writes is mostly empty, or there is nothing but copies.
    """
    row = backbone.encode(Example(trigger, ("",)), with_answer=False)
    originals = generated.Originals(taught if options.drop_copies else ())
    texts: list[str] = []
    dropped = 0
    for _ in range(ROUNDS * -(-count // BATCH)):
        batch = backbone.collate([row] * min(BATCH, count - len(texts)))
        switch_on(len(batch["input_ids"]))
        drawn = backbone.generate(
            batch, options.max_new_tokens, do_sample=True, top_k=options.top_k
        )
        written = [text for text in drawn if text]
        new = [text for text in written if not originals.has(text)]
        dropped += len(written) - len(new)
        texts += new
        if len(texts) == count:
            break
    if len(texts) == count or (texts and dropped):
        return Written(texts, dropped)
    if dropped:
        raise RetainError(
            "the generator writes nothing but copies of training inputs; start again in another "
            "--output with drop_copies: false, or with more training examples"
        )
    raise RetainError(
        f"the generator writes empty pseudo-samples ({len(texts)} of {count} have text); "
        f"start again in another --output with a higher {remedy}"
    )


def write_quality(
    folder: Path, backbone: Backbone, texts: Sequence[str], dropped: int, taught: Sequence[str]
) -> None:
    """Measures a task's pseudo-samples beside its training inputs; keeps numbers, and no input."""
    originals = generated.Originals(taught)
    ids = _token_ids(backbone, texts)
    real = _token_ids(backbone, generated.spread(taught, len(texts)))
    found = {
        "count": len(texts),
        "auc": generated.separability(texts, taught),
        "distinct_2": generated.distinct(ids, 2),
        "real_distinct_2": generated.distinct(real, 2),
        "duplicates": generated.duplicates(texts),
        "copies": sum(map(originals.has, texts)),
        "dropped": dropped,
    }
    write_json(folder / QUALITY, found)


def _token_ids(backbone: Backbone, texts: Sequence[str]) -> list[list[int]]:
    return [backbone.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
