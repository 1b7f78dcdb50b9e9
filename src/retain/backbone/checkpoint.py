"""The files of a model folder, looked at before anything of them is loaded.

transformers' own errors do not name the damaged file, and some damage it passes over.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers.utils import (
    CONFIG_NAME,
    GENERATION_CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
)

from retain.errors import RetainError, first_line
from retain.system.files import read_json

OBJECTS = (
    CONFIG_NAME,
    GENERATION_CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    *("adapter_config.json", "special_tokens_map.json", "tokenizer_config.json"),
)
"""Files that hold one JSON object each, where they are there."""
LAYERS = (
    *("num_hidden_layers", "num_layers", "n_layer", "n_layers"),
    *("encoder_layers", "decoder_layers", "num_decoder_layers"),
)
MOST_LAYERS = 1000
"""More layers than any model has; some classes have a few and go through them again and again."""
POINTER = b"version https://git-lfs"


def check_folder(folder: Path, needs_weights: bool = True) -> dict[str, Any] | None:
    """Looks at a model folder's small files, and at the names and types of its weights.

    Args:
        folder: has a config.json.
        needs_weights: whether the weights are to be loaded.

    Returns:
        The config's `quantization_config`.

    Raises:
        RetainError: if a file is damaged or missing, the config has more layers than the weights
            can be of, or weights are whole numbers and nothing says what these stand for.
    """
    read = {path.name: _object(path) for path in map(folder.joinpath, OBJECTS) if path.is_file()}
    config = read[CONFIG_NAME]
    quantized = config.get("quantization_config")
    if not isinstance(quantized, dict | None):
        raise RetainError(f"{folder / CONFIG_NAME}: quantization_config is no object; correct it")
    files = _weights(folder, read.get(SAFE_WEIGHTS_INDEX_NAME, {}))
    if needs_weights and not files:
        raise RetainError(
            f"{folder / SAFE_WEIGHTS_NAME}: no such file; restore it, or save the model with "
            "save_pretrained, which writes it"
        )
    types = {name: (kind, path) for path in files for name, kind in _types(path)}
    if (layers := max(_layers(config), default=0)) > max(MOST_LAYERS, len(types)):
        raise RetainError(
            f"{folder / CONFIG_NAME}: has {layers:,} layers, and the files have {len(types)} "
            "weights; correct it"
        )
    for name, (kind, path) in types.items():
        if name.endswith("weight") and kind[0] in "IU" and not quantized:
            raise RetainError(
                f"{path}: {name} is of whole numbers ({kind}), and config.json has no "
                "quantization_config that says what these stand for; restore it, or take the "
                "model without quantization"
            )
    return quantized


def _object(path: Path) -> dict[str, Any]:
    """Reads a file of one JSON object."""
    if not isinstance(value := read_json(path), dict):
        raise RetainError(f"{path}: is no JSON object; restore it")
    return value


def _weights(folder: Path, index: dict[str, Any]) -> list[Path]:
    """Returns the files that transformers would load weights from."""
    if (folder / SAFE_WEIGHTS_NAME).is_file():
        return [folder / SAFE_WEIGHTS_NAME]
    if not index:
        return []
    names = index.get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        path = folder / SAFE_WEIGHTS_INDEX_NAME
        raise RetainError(f"{path}: has no weight_map from weights to files; restore it")
    files = [folder / name for name in sorted({*names.values()})]
    for path in files:
        if not path.is_file():
            raise RetainError(
                f"{path}: no such file, which {SAFE_WEIGHTS_INDEX_NAME} names; restore it"
            )
    return files


def _types(path: Path) -> Iterator[tuple[str, str]]:
    """Yields the name and type of each tensor of a safetensors file."""
    try:
        with path.open("rb") as file:
            if file.read(len(POINTER)) == POINTER:
                raise RetainError(f"{path}: is a pointer of Git LFS; fetch it with git lfs pull")
        with safe_open(path, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (it is no mapping)
                yield name, tensors.get_slice(name).get_dtype()
    except (OSError, SafetensorError) as error:
        raise RetainError(f"{path}: is damaged ({first_line(error)}); restore it") from None


def _layers(config: dict[str, Any]) -> Iterator[int]:
    """Yields the numbers of layers that a config states, also those of its parts."""
    for key, value in config.items():
        if key in LAYERS and isinstance(value, int):
            yield value
        elif isinstance(value, dict):
            yield from _layers(value)
