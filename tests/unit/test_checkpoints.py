"""Checkpoints whose files say what retain cannot keep, and those that only seem so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from transformers import (
    AutoModelForCausalLM,
    Mamba2Config,
    Phi3Config,
    SwitchTransformersConfig,
    SwitchTransformersForConditionalGeneration,
)

from retain.backbone import Backbone, BackboneConfig, load_backbone
from retain.backbone.probe import try_out
from retain.errors import RetainError
from retain.learner.learner import Learner
from retain.tasks import Example
from retain.testing.tiny import make_backbone, make_task, make_tokenizer, save_backbone

SMALL = {
    **{"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1},
    **{"num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 120, "pad_token_id": 0},
}


def load(folder: Path) -> Backbone:
    return load_backbone(BackboneConfig(name=str(folder), dtype="float32"))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"eos_token_id": 1', r"not readable as JSON \(.*\); restore it"),
        ("", r"not readable as JSON \(.*\); restore it"),
        ('{"eos_token_id": "end"}', "eos_token_id must be a token id; correct it"),
        ('{"eos_token_id": [1, true]}', "eos_token_id must be a token id; correct it"),
        ('{"pad_token_id": 1.5}', "pad_token_id must be a token id; correct it"),
    ],
)
def test_damaged_generation_settings_are_refused(content: str, says: str, tmp_path: Path) -> None:
    """transformers would take its own in their place: other tokens would end an answer."""
    folder = save_backbone("llama", tmp_path / "model")
    (folder / "generation_config.json").write_text(content)
    with pytest.raises(RetainError, match=rf"generation_config\.json: {says}$"):
        load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(value: float, tmp_path: Path) -> None:
    """Also that of a token which no short text has."""
    folder = save_backbone("llama", tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][-1, 0] = value
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(RetainError, match=r"embed_tokens\.weight has values that are no finite"):
        load(folder)


def test_weights_in_few_bits_without_scales_are_refused(tmp_path: Path) -> None:
    folder = save_backbone("llama", tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    weights[name] = (100 * weights[name]).to(torch.int8)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(RetainError, match=r"up_proj\.weight is stored as I8, and its config\.json"):
        load(folder)


@pytest.mark.parametrize("written", [False, True])
def test_a_special_token_without_an_embedding(written: bool) -> None:
    """Gemma 3 of 1B has one for images, which no text gets; a template may write it, though."""
    plain = make_backbone("llama")
    tokenizer = make_tokenizer()
    image = AddedToken("<image>", special=True, normalized=False)
    tokenizer.add_special_tokens({"additional_special_tokens": [image]})
    tokenizer.chat_template = "{{ messages[0].content }}" + written * "<image>"
    if written:
        with pytest.raises(RetainError, match="its tokenizer has token id"):
            Backbone(plain.model, tokenizer, "x")
        return
    backbone = Backbone(plain.model, tokenizer, "x")
    ids = backbone.encode(Example("an <image> here", ("yes",)))["input_ids"]
    assert max(ids) < backbone.embedding.num_embeddings


def test_rope_that_depends_on_the_longest_row_limits_the_window() -> None:
    """Beyond that length a row alone would have other positions than beside a longer one."""
    factors = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    rope: dict[str, Any] = {**factors, "rope_theta": 10_000.0}
    config = Phi3Config(
        **SMALL,
        rope_parameters=rope,
        max_position_embeddings=256,
        original_max_position_embeddings=64,
        eos_token_id=1,
        bos_token_id=1,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    backbone = Backbone(model, make_tokenizer(), "x")
    assert backbone.window == 64
    ids = torch.arange(5, 69)[None]
    beside = (ids[:, :0], ids[:, :0], ids)
    with torch.no_grad():
        short, again, long = (model(torch.cat([ids, each], 1)).logits[:, :64] for each in beside)
    assert (short - long).abs().max() > 1e-5 > (short - again).abs().max()


def test_experts_with_room_for_some_tokens_of_a_batch_are_refused() -> None:
    config = SwitchTransformersConfig(
        d_model=16, d_ff=16, num_layers=2, num_heads=2, vocab_size=120, decoder_start_token_id=0
    )
    model = SwitchTransformersForConditionalGeneration(config)
    with pytest.raises(RetainError, match="takes 64 tokens of a batch and leaves out the rest"):
        try_out(Backbone(model, make_tokenizer(), "x"))


def test_seekr_needs_heads(tmp_path: Path) -> None:
    size = {"hidden_size": 32, "num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1}
    config = Mamba2Config(**size, num_hidden_layers=1, vocab_size=120)
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(RetainError, match="has no attention heads, which SEEKR distils"):
        Learner((model, make_tokenizer()), {"name": "seekr", "tune": "lora"}, tmp_path / "run")


def test_a_text_config_inside_another_has_the_vocabulary(tmp_path: Path) -> None:
    """As in Gemma 3."""
    backbone = make_backbone("llama")
    text = backbone.model.config
    settings = json.loads(text.to_json_string())
    outer = type(text)(**settings)
    object.__setattr__(outer, "get_text_config", lambda **_: text)
    del outer.__dict__["vocab_size"]
    backbone.model.config = outer
    method = {"name": "derpp", "teacher": {"dtype": "float32"}}
    learner = Learner(
        (backbone.model, backbone.tokenizer), method, tmp_path / "run", training={"max_steps": 1}
    )
    learner.learn(make_task("copy"))
