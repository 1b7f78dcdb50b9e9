"""Pseudo-samples: inputs of a task that the model generates from a trigger prompt.

The model is trained before to answer the trigger with the task's training inputs.
"""

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
"""File of the measures in a task's folder."""
BATCH = 32
"""Prompts per batch of generation and of embedding."""
ROUNDS = 10
"""Batches drawn at most, as a multiple of those needed if no text were empty or a copy."""


class Quality(Record):
    """`quality.json`: the measures of a task's pseudo-samples, explained in `metrics.generated`."""

    count: int
    auc: float | None
    distinct_2: float | None
    real_distinct_2: float | None
    duplicates: int
    copies: int
    dropped: int


class DrawConfig(Options):
    """How pseudo-samples are sampled. `drop_copies` discards those that copy a training input."""

    top_k: PositiveInt = 20
    max_new_tokens: PositiveInt = 128
    drop_copies: bool = False


@dataclass(frozen=True)
class Written:
    """The pseudo-samples of a task.

    Attributes:
        texts: the generated inputs; none is empty.
        dropped: the number of discarded copies of training inputs.
    """

    texts: list[str]
    dropped: int


def generator_rows(backbone: Backbone, examples: Sequence[Example], trigger: str) -> list[Features]:
    """Encodes examples that train the generator: the trigger as prompt, an input as answer."""
    longest = backbone.prompt.max_prompt_tokens
    pairs = [Example(trigger, (example.prompt,)) for example in examples]
    return [backbone.encode(pair, answer_limit=longest) for pair in pairs]


def taught_inputs(backbone: Backbone, rows: Sequence[Features]) -> list[str]:
    """Decodes the training inputs from the rows of `generator_rows`.

    Pseudo-samples are compared with these instead of the original texts. What the tokenizer cannot
    represent (T5 has no line break) would otherwise distinguish every pseudo-sample.
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
    """Generates `count` pseudo-samples, or fewer if copies are dropped and few others come.

    Args:
        backbone: the trained generator.
        trigger: the prompt.
        switch_on: activates the generator's block for a batch; called with the batch size.
        count: the number of pseudo-samples.
        options: how they are sampled.
        taught: the training inputs, as `taught_inputs` returns them.
        remedy: the name of an option whose higher value improves the generator, for the error.

    Raises:
        RetainError: when too many texts are empty, or all others are copies.
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
            "the generator writes only copies of training inputs; start again in another "
            "--output with drop_copies: false, or with more training examples"
        )
    raise RetainError(
        f"the generator writes empty pseudo-samples ({len(texts)} of {count} have text); "
        f"start again in another --output with a higher {remedy}"
    )


def write_quality(
    folder: Path, backbone: Backbone, texts: Sequence[str], dropped: int, taught: Sequence[str]
) -> None:
    """Compares a task's pseudo-samples with its training inputs and writes `quality.json`.

    The file holds numbers only, so that the run keeps no input.
    """
    originals = generated.Originals(taught)
    ids = _token_ids(backbone, texts)
    real = _token_ids(backbone, generated.spread(taught, len(texts)))
    measures = {
        "count": len(texts),
        "auc": generated.separability(texts, taught),
        "distinct_2": generated.distinct(ids, 2),
        "real_distinct_2": generated.distinct(real, 2),
        "duplicates": generated.duplicates(texts),
        "copies": sum(map(originals.has, texts)),
        "dropped": dropped,
    }
    write_json(folder / QUALITY, measures)


def _token_ids(backbone: Backbone, texts: Sequence[str]) -> list[list[int]]:
    return [backbone.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
