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


def window_of(model: PreTrainedModel) -> tuple[int | None, int | None]:
    """Returns the numbers of positions that a model reads and writes; None where there is no limit.

    Both are the same for a decoder-only model, whose prompt and answer are one sequence. A table of
    learned positions that is smaller than the config says is the limit.
    """
    config = model.config
    if not config.is_encoder_decoder:
        text = config.get_text_config(decoder=True)
        window = _least(_stated(text, WRITTEN), _learned(model.get_decoder()), _unscaled(text))
        return window, window
    reader = getattr(config, "encoder", None)
    writer = getattr(config, "decoder", None)
    read = _least(_stated(_text(reader, config), READ), _learned(model.get_encoder()))
    written = _least(_stated(_text(writer, config), WRITTEN), _learned(model.get_decoder()))
    if written and hasattr(config, "ngram"):  # ProphetNet's decoder looks a position ahead
        written -= 1
    return read, written


def _unscaled(config: PreTrainedConfig) -> int | None:
    """Returns the positions up to which LongRoPE (arXiv 2402.13753) has its short factors.

    The longest row of a batch decides for all of them which factors are taken. So a row alone would
    have other answers than beside a longer one.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(part for part in rope.values() if isinstance(part, dict))]  # by kind of layer
    limits = [
        kind.get("original_max_position_embeddings")
        or getattr(config, "original_max_position_embeddings", None)
        for kind in kinds
        if kind.get("rope_type") == "longrope"
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
