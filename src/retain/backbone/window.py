"""The numbers of positions that a model can read and write, under the names that classes use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

NAMES = ("max_position_embeddings", "max_seq_len", "max_sequence_length")
OLDER = ("n_positions", "n_ctx")
"""Also in T5's configs, whose positions are relative and have no limit."""
READ = ("max_encoder_position_embeddings", *NAMES, *OLDER)
WRITTEN = ("max_decoder_position_embeddings", "max_target_positions", *NAMES, *OLDER)
TABLES = ("position", "wpe")
"""Parts of the names of tables of learned positions."""
TOWERS = ("image", "vision", "visual", "audio")
"""Parts of the names of what reads no text."""


LONGROPE = ("longrope", "su")
"""Rotary positions with other frequencies for all rows of a batch once one of them is long."""


def window_of(model: PreTrainedModel) -> tuple[int | None, int | None]:
    """Returns the numbers of positions that a model reads and writes; None where there is no limit.

    Both are the same for a decoder-only model, whose prompt and answer are one sequence. A table of
    learned positions that is smaller than the config says is the limit, and so are the positions
    after which longrope changes.
    """
    config = model.config
    if not config.is_encoder_decoder:
        text = config.get_text_config(decoder=True)
        window = _least(_stated(text, WRITTEN), _learned(model.get_decoder()), _longrope(text))
        return window, window
    reader = _text(getattr(config, "encoder", None), config)
    writer = _text(getattr(config, "decoder", None), config)
    read = _least(_stated(reader, READ), _learned(model.get_encoder()), _longrope(reader))
    written = _least(_stated(writer, WRITTEN), _learned(model.get_decoder()), _longrope(writer))
    if written and hasattr(config, "ngram"):  # ProphetNet's decoder looks a position ahead
        written -= 1
    return read, written


def longrope_note(model: PreTrainedModel, window: int | None) -> str:
    """Returns what an error adds on a window that ends where longrope changes; else nothing."""
    if window is None or window != _longrope(model.config.get_text_config(decoder=True)):
        return ""
    return " (beyond them its longrope changes what all rows of a batch give)"


def _longrope(config: PreTrainedConfig) -> int | None:
    """Returns the positions after which longrope takes other frequencies; None without longrope.

    Within them a row gives what it gives alone. Beyond them the frequencies change for all rows of
    a batch, and in the middle of an answer.
    """
    stated = getattr(config, "rope_parameters", None) or {}
    whole = getattr(config, "original_max_position_embeddings", None)
    limits = [
        rope.get("original_max_position_embeddings", whole)
        for rope in (stated, *stated.values())  # some classes have one for each type of layer
        if isinstance(rope, dict) and rope.get("rope_type", rope.get("type")) in LONGROPE
    ]
    return _least(*limits)


def _text(part: Any, whole: PreTrainedConfig) -> PreTrainedConfig:
    """Returns the text config of a part of a composite model, or the whole model's."""
    return part.get_text_config() if isinstance(part, PreTrainedConfig) else whole


def _stated(config: PreTrainedConfig, names: Sequence[str]) -> int | None:
    """Returns the first positive number that a config has under these names; XLNet has −1."""
    if hasattr(config, "relative_attention_num_buckets"):
        names = [name for name in names if name not in OLDER]
    values = (getattr(config, name, None) for name in names)
    return next((v for v in values if isinstance(v, int) and v > 0), None)


def _learned(part: Any) -> int | None:
    """Returns the positions of a model's smallest table of them, without those it never uses."""
    if not isinstance(part, nn.Module):
        return None
    sizes = []
    for name, table in part.named_modules():
        last = name.rpartition(".")[2]
        if any(word in name for word in TOWERS) or not any(word in last for word in TABLES):
            continue
        if isinstance(table, nn.Embedding):
            # OPT and BART begin at an offset, RoBERTa after the padding token.
            skipped = getattr(table, "offset", None)
            if skipped is None:
                skipped = 0 if table.padding_idx is None else table.padding_idx + 1
            sizes.append(table.num_embeddings - skipped)
    return min(sizes, default=None)


def _least(*limits: int | None) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)
