"""Damage to the files of a model, told by the file before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from retain.backbone import BackboneConfig, load_backbone
from retain.backbone.loading import load_skeleton
from retain.errors import RetainError
from retain.testing.tiny import save_backbone

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
UP = "model.layers.0.mlp.up_proj.weight"


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    held = load_file(path)
    change(held)
    save_file(held, path, {"format": "pt"})


def spoiled(value: float) -> Callable[[Path], None]:
    """Spoils the row of a token that no short prompt has."""

    def damage(folder: Path) -> None:
        tensors(folder / WEIGHTS, lambda t: t["model.embed_tokens.weight"][-1].fill_(value))

    return damage


def as_int8(folder: Path) -> None:
    tensors(folder / WEIGHTS, lambda t: t.update({UP: (t[UP] * 100).to(torch.int8)}))


HEADER: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (lambda f: (f / WEIGHTS).write_bytes(b""), f"{WEIGHTS}: is damaged"),
    "pointer": (
        lambda f: (f / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\nsize 1"),
        "fetch it with git lfs pull",
    ),
    "int8": (as_int8, f"{UP} is of whole numbers \\(I8\\), and config.json has no quantization_c"),
    "layers": (
        lambda f: edit(f / "config.json", num_hidden_layers=100_000),
        "config.json: has 100,000 layers, and the files have 21 weights",
    ),
    "quantization": (
        lambda f: edit(f / "config.json", quantization_config=[1]),
        "config.json: quantization_config is no object",
    ),
    "other-quantization": (
        lambda f: edit(f / "config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
        "its checkpoint is quantised by gptq",
    ),
    "settings": (lambda f: (f / "tokenizer_config.json").write_text("["), "er_config.json: not re"),
    "index": (
        lambda f: ((f / WEIGHTS).unlink(), (f / INDEX).write_text('{"weight_map": {"a": 1}}')),
        "has no weight_map from weights to files",
    ),
    "shard": (
        lambda f: ((f / WEIGHTS).unlink(), (f / INDEX).write_text('{"weight_map": {"a": "b"}}')),
        "b: no such file, which model.safetensors.index.json names",
    ),
}
NUMBERS = {"nan": (spoiled(float("nan")), "has numbers that are infinite, or none; take another")}
NUMBERS["inf"] = (spoiled(float("inf")), NUMBERS["nan"][1])
NUMBERS["gone"] = (lambda f: (f / WEIGHTS).unlink(), f"{WEIGHTS}: no such file; restore it")


@pytest.mark.parametrize("name", [*HEADER, *NUMBERS])
def test_damage_is_named(name: str, tmp_path: Path) -> None:
    damage, says = {**HEADER, **NUMBERS}[name]
    folder = save_backbone("llama", tmp_path / "model")
    damage(folder)
    with pytest.raises(RetainError, match=says) as told:
        load_backbone(BackboneConfig(name=str(folder)))
    assert "\n" not in str(told.value)
    if name in HEADER:  # whoever foretells the memory reads no numbers, and may lack weights
        with pytest.raises(RetainError, match=says):
            load_skeleton(BackboneConfig(name=str(folder), dtype="float32"))


def test_several_files_of_weights(tmp_path: Path) -> None:
    folder = save_backbone("llama", tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / WEIGHTS).unlink()
    model.save_pretrained(folder, max_shard_size="10KB")
    load_backbone(BackboneConfig(name=str(folder)))
