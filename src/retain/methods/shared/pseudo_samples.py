"""Pseudo-samples: inputs of a task that the model generates from a trigger prompt.

The model is trained before to answer the trigger with the task's training inputs; with `answered`,
each with `ANSWER` and its answer after it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import PositiveInt

from retain.backbone import Backbone, Features
from retain.backbone.losses import IGNORED
from retain.methods.base import Options
from retain.metrics import generated
from retain.runs.records import Record
from retain.system.files import write_json
from retain.tasks import Example

QUALITY = "quality.json"
"""File of the measures in a task's folder."""
BATCH = 32
"""Prompts per batch of generation and of embedding."""
ANSWER = "__ans__"
"""What stands between an input and its answer, as in the code of SAPT and LFPT5 (there a token)."""
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
        notice: what the user should know when texts are missing; empty if there are enough.
    """

    texts: list[str]
    dropped: int
    notice: str = ""


def generator_rows(
    backbone: Backbone, examples: Sequence[Example], trigger: str, answered: bool = False
) -> list[Features]:
    """Encodes examples that train the generator: the trigger as prompt, an input as answer.

    With `answered` the example's first reference follows the input. What does not fit in the window
    after the trigger is cut off.
    """
    row = backbone.encode(Example(trigger, ("",)), with_answer=False)
    room = backbone.room_after(len(row["input_ids"])) - 1
    limit = backbone.prompt.max_prompt_tokens
    limit += backbone.prompt.max_answer_tokens if answered else 0
    longest = max(1, min(limit, room))
    targets = [e.prompt + (ANSWER + e.references[0] if answered else "") for e in examples]
    pairs = [Example(trigger, (target,)) for target in targets]
    return [backbone.encode(pair, answer_limit=longest) for pair in pairs]


def taught_inputs(
    backbone: Backbone, rows: Sequence[Features], answered: bool = False
) -> list[str]:
    """Decodes the training inputs from the rows of `generator_rows`.

    Pseudo-samples are compared with these instead of the original texts. What the tokenizer cannot
    represent (T5 has no line break) would otherwise distinguish every pseudo-sample.
    """
    texts = [backbone.decode([i for i in row["labels"] if i != IGNORED]) for row in rows]
    return [text.partition(ANSWER)[0].strip() for text in texts] if answered else texts


def write_inputs(
    backbone: Backbone,
    trigger: str,
    switch_on: Callable[[int], object],
    count: int,
    options: DrawConfig,
    taught: Sequence[str],
    remedy: str,
    answered: bool = False,
) -> Written:
    """Generates `count` pseudo-samples, or fewer if too many come out empty or as copies.

    With `answered` the input before `ANSWER` is kept, and a text without it counts as empty.

    What is drawn at random never ends a run that is hours old: it goes on with fewer texts, or
    none, and a notice.

    Args:
        backbone: the trained generator.
        trigger: the prompt.
        switch_on: activates the generator's block for a batch; called with the batch size.
        count: the number of pseudo-samples.
        options: how they are sampled.
        taught: the training inputs, as `taught_inputs` returns them.
        remedy: the name of an option whose higher value improves the generator, for the notice.
        answered: whether the generator writes inputs with their answers.
    """
    row = backbone.encode(Example(trigger, ("",)), with_answer=False)
    originals = generated.Originals(taught if options.drop_copies else ())
    texts: list[str] = []
    dropped = 0
    for _ in range(ROUNDS * -(-count // BATCH)):
        batch = backbone.collate([row] * min(BATCH, count - len(texts)))
        switch_on(len(batch["input_ids"]))
        longest = min(options.max_new_tokens, backbone.room_after(len(row["input_ids"])))
        drawn = backbone.generate(batch, longest, do_sample=True, top_k=options.top_k)
        if answered:
            drawn = [text.partition(ANSWER)[0].strip() if ANSWER in text else "" for text in drawn]
        written = [text for text in drawn if text]
        new = [text for text in written if not originals.has(text)]
        dropped += len(written) - len(new)
        texts += new
        if len(texts) == count:
            break
    notice = ""
    if len(texts) < count and not (texts and dropped):
        cause = "texts without an input and an answer" if answered else "empty texts"
        advice = f"a higher {remedy}"
        if dropped:
            cause, advice = "copies of training inputs", "drop_copies: false or more examples"
        notice = (
            f"warning: {len(texts)} pseudo-samples instead of {count}, because the generator "
            f"writes {cause}; older tasks are protected less, which {advice} would change"
        )
    return Written(texts, dropped, notice)


def write_quality(
    folder: Path, backbone: Backbone, texts: Sequence[str], dropped: int, taught: Sequence[str]
) -> None:
    """Compares a task's pseudo-samples with its training inputs and writes `quality.json`.

    The file holds numbers only, so that the run keeps no input.
    """
    originals = generated.Originals(taught)
    ids = _token_ids(backbone, texts)
    real = _token_ids(backbone, generated.spread(taught, len(texts)) if texts else [])
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
    return [backbone.texts.plain_ids(text) for text in texts]
