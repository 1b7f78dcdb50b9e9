"""Pseudo-samples: inputs of a task that the model itself writes, from a trigger it learned on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from retain.backbone import Backbone, Features
from retain.errors import RetainError
from retain.tasks import Example

BATCH = 32
ROUNDS = 10
"""How often empty pseudo-samples are drawn again before giving up."""


def generator_rows(backbone: Backbone, examples: Sequence[Example], trigger: str) -> list[Features]:
    """Rows that teach to write the examples' inputs when given the trigger."""
    longest = backbone.prompt.max_prompt_tokens
    pairs = [Example(trigger, (example.prompt,)) for example in examples]
    return [backbone.encode(pair, answer_limit=longest) for pair in pairs]


def write_inputs(
    backbone: Backbone,
    trigger: str,
    switch_on: Callable[[int], object],
    count: int,
    max_new_tokens: int,
    top_k: int,
    remedy: str,
) -> list[str]:
    """Samples `count` inputs, none of them empty.

    Args:
        backbone: with what was learned for the trigger.
        trigger: the prompt.
        switch_on: called with the size of each batch, before it is written.
        count: how many.
        max_new_tokens: of one input.
        top_k: tokens to draw from.
        remedy: an option that makes a better generator when it is higher, for the error.

    Raises:
        RetainError: when what it writes is mostly empty.
    """
    row = backbone.encode(Example(trigger, ("",)), with_answer=False)
    texts: list[str] = []
    for _ in range(ROUNDS * -(-count // BATCH)):
        batch = backbone.collate([row] * min(BATCH, count - len(texts)))
        switch_on(len(batch["input_ids"]))
        drawn = backbone.generate(batch, max_new_tokens, do_sample=True, top_k=top_k)
        texts += [text for text in drawn if text]
        if len(texts) == count:
            return texts
    raise RetainError(
        f"the generator writes empty pseudo-samples ({len(texts)} of {count} have text); "
        f"start again in another --output with a higher {remedy}"
    )
