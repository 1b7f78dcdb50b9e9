"""Tokens that begin and end answers, as the files of a model name them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from retain.backbone import Backbone, BackboneConfig, load_backbone
from retain.errors import RetainError
from retain.tasks import Example
from retain.testing.tiny import make_backbone, save_backbone


def load(folder: Path, **settings: Any) -> Backbone:
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return load_backbone(BackboneConfig(name=str(folder)))


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("llama", "eos_token_id", "</s>"),
        ("llama", "eos_token_id", [[2]]),
        ("llama", "eos_token_id", True),
        ("llama", "eos_token_id", 2.5),
        ("bart", "decoder_start_token_id", [2]),
        ("bart", "decoder_start_token_id", 99_999),
        ("bart", "decoder_start_token_id", -1),
        ("bart", "forced_bos_token_id", "en"),
        ("bart", "forced_bos_token_id", 99_999),
    ],
)
def test_what_is_no_token_is_refused(kind: str, key: str, value: Any, tmp_path: Path) -> None:
    folder = save_backbone(kind, tmp_path / "model")
    with pytest.raises(RetainError, match=rf"{key} in its generation_config.json .* is .*; set it"):
        load(folder, **{"decoder_start_token_id": 0, key: value})


def test_an_end_token_beyond_the_embeddings_is_never_written(tmp_path: Path) -> None:
    backbone = load(save_backbone("llama", tmp_path / "model"), eos_token_id=[99_999])
    assert backbone.end_ids == [backbone.tokenizer.eos_token_id, 99_999]


@pytest.mark.parametrize("content", ["{", "[]", '{"eos_token_id": "\xe9"}'])
def test_a_damaged_file_is_refused(content: str, tmp_path: Path) -> None:
    """transformers would go on with what config.json says."""
    folder = save_backbone("llama", tmp_path / "model")
    (folder / "generation_config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(RetainError, match=r"generation_config.json: .*; restore it$") as told:
        load_backbone(BackboneConfig(name=str(folder)))
    assert "\n" not in str(told.value)


def with_token(folder: Path, token: str, special: bool) -> Backbone:
    """Loads a model whose tokenizer has a token more than it has embeddings."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([token], special_tokens=special)
    tokenizer.save_pretrained(folder)
    return load_backbone(BackboneConfig(name=str(folder)))


def test_a_special_token_that_no_text_becomes_may_lack_an_embedding(tmp_path: Path) -> None:
    """As in Gemma 3 1B, which reads no images, and in Code Llama 34B, which fills in no code."""
    backbone = with_token(save_backbone("llama", tmp_path / "model"), "<image>", special=True)
    ids = backbone.encode(Example("an <image> here", ("yes",)))["input_ids"]
    assert max(ids) < backbone.embedding.num_embeddings
    backbone.tokenizer.chat_template = "<image>{% for m in messages %}{{ m.content }} {% endfor %}"
    backbone.prompt.chat_template = True
    with pytest.raises(RetainError, match=r"prompt 'here': '<image>' is token \d+, but the backbo"):
        backbone.uncut(Example("here", ("yes",)))


def test_a_token_of_text_needs_an_embedding(tmp_path: Path) -> None:
    with pytest.raises(RetainError, match=r"its tokenizer has token id \d+, but the model has on"):
        with_token(save_backbone("llama", tmp_path / "model"), "<think>", special=False)


def test_rows_are_filled_with_a_token_that_has_an_embedding() -> None:
    backbone = make_backbone("llama")
    backbone.tokenizer.add_special_tokens({"pad_token": "<filler>"})
    again = Backbone(backbone.model, backbone.tokenizer, "x")
    assert again.pad_id == backbone.tokenizer.eos_token_id
