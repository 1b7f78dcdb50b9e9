"""The tokens that begin, end and pad what a model writes, checked before anything is asked."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from retain.errors import RetainError


def scored_settings(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str
) -> GenerationConfig:
    """Returns what `generate` takes by default: the model's tokens, and none of its other settings.

    `generate` takes every option that a call leaves out from here. A model card's penalties and
    temperatures would change every score and sample.

    Args:
        model: has its own generation_config.
        tokenizer: of the model.
        name: the backbone's, for errors.

    Raises:
        RetainError: if the tokenizer does not fit the model, or a token is no number of one.
    """
    rows = model.get_input_embeddings().num_embeddings
    _refuse_other_vocabulary(tokenizer, rows, name)
    own = model.generation_config
    stated = own.eos_token_id
    ends = {*_checked("eos_token_id", stated if isinstance(stated, list) else [stated], name)}
    start = forced = None
    if model.config.is_encoder_decoder:
        with suppress(AttributeError, NotImplementedError):  # FSMT's decoder does not tell
            rows = min(rows, model.get_decoder().get_input_embeddings().num_embeddings)
        ids = {key: getattr(own, key) for key in ("decoder_start_token_id", "bos_token_id")}
        key = next((key for key, value in ids.items() if value is not None), None)
        if key is None:
            raise RetainError(
                f"backbone '{name}': names no token that its decoder starts with; set "
                "decoder_start_token_id in generation_config.json"
            )
        [start] = _checked(key, [ids[key]], name, rows)
        first = _checked("forced_bos_token_id", [own.forced_bos_token_id], name, rows)
        forced = first[0] if first else None
    pad = tokenizer.pad_token_id
    return GenerationConfig(
        # The end token fills rows where the model has no token for it.
        pad_token_id=tokenizer.eos_token_id if pad is None or pad >= rows else pad,
        eos_token_id=sorted({*ends, tokenizer.eos_token_id}),
        decoder_start_token_id=start,
        forced_bos_token_id=forced,
    )


def refuse_without_embedding(
    ids: list[int], tokenizer: PreTrainedTokenizerBase, rows: int, where: str
) -> None:
    """Raises RetainError for a token of a text that the model has no embedding for.

    Args:
        ids: of the text.
        tokenizer: of the model.
        rows: how many embeddings the model has.
        where: start of the error message.
    """
    if (largest := max(ids, default=0)) >= rows:
        raise RetainError(
            f"{where}: {tokenizer.convert_ids_to_tokens(largest)!r} is token {largest}, but the "
            f"backbone has only {rows} embeddings; take it out of the chat template, or of what "
            "the tokenizer writes around a text"
        )


def _refuse_other_vocabulary(tokenizer: PreTrainedTokenizerBase, rows: int, name: str) -> None:
    """Refuses a vocabulary with more tokens of text than the model has embeddings.

    Special tokens may be beyond, as the image token of Gemma 3 1B is: no text becomes one, and
    `refuse_without_embedding` looks at what a template writes.
    """
    if tokenizer.eos_token_id is None:
        raise RetainError(
            f"backbone '{name}': its tokenizer has no end token; set eos_token in "
            "tokenizer_config.json"
        )
    beyond = {i for i in tokenizer.get_vocab().values() if i >= rows}
    if beyond:
        added = tokenizer.added_tokens_decoder.items()
        beyond -= {i for i, token in added if token.special and i != tokenizer.eos_token_id}
    if beyond:
        raise RetainError(
            f"backbone '{name}': its tokenizer has token id {max(beyond)}, but the model has only "
            f"{rows} embeddings; use the tokenizer of this model"
        )


def _checked(key: str, values: list[Any], name: str, rows: int | None = None) -> list[int]:
    """Returns the values of a setting that are not None, each a number of a token.

    An id that ends answers may be beyond the embeddings (`rows` is None): none is ever written.
    """
    values = [value for value in values if value is not None]
    for value in values:
        is_id = isinstance(value, int) and not isinstance(value, bool)
        if not is_id or (rows is not None and not 0 <= value < rows):
            below = "" if rows is None else f" from 0 to {rows - 1}"
            raise RetainError(
                f"backbone '{name}': {key} in its generation_config.json (or config.json) is "
                f"{value!r}; set it to the number of a token{below}"
            )
    return values
