"""The libraries and the backbone that a run was made with, and what has changed since."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from retain.backbone import Backbone
from retain.backbone.quantization import PACKAGE, is_quantized
from retain.errors import RetainError
from retain.runs.records import ENVIRONMENT
from retain.system import processes

LIBRARIES = ("retain", "torch", "transformers", "peft", "accelerate", "tokenizers")
SAMPLED = 1024
"""Numbers of each tensor that the fingerprint reads; all of a large model would take minutes."""
TEMPLATE = "backbone_chat_template"
PARTS = {
    "backbone": "weights",
    "backbone_config": "settings (config.json)",
    "backbone_tokenizer": "tokenizer",
    "backbone_special_tokens": "special tokens",
    TEMPLATE: "chat template",
}
"""Parts of a backbone in words, by the key of their fingerprint in `environment.json`."""
INCIDENTAL = ("transformers_version", "architectures", "dtype", "torch_dtype", "use_cache")
"""Fields of a model's config that change with the way it is loaded or saved."""
PLUGIN = "plugin "
PLUGINS: dict[str, str] = {}
"""The loaded plugins, by `PLUGIN` and name: a package's version, or a module's checksum."""


def versions() -> dict[str, str]:
    """Versions of Python, of the libraries that numbers depend on, and of loaded plugins."""
    libraries = {name: version(name) for name in LIBRARIES}
    return {"python": platform.python_version(), **libraries, **PLUGINS}


def quantizer(backbone: Backbone) -> dict[str, str]:
    """Version of the library that computes with a backbone in 4 or 8 bits; empty for others."""
    return {PACKAGE: version(PACKAGE)} if is_quantized(backbone.model) else {}


def fingerprint(model: nn.Module) -> str:
    """A sha256 of a model's tensors: their names and shapes, and `SAMPLED` numbers of each."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        values = tensor.flatten()[:: max(1, tensor.numel() // SAMPLED)]
        digest.update(values.cpu().double().numpy().tobytes())
    return digest.hexdigest()


def fingerprints(backbone: Backbone) -> dict[str, str]:
    """Fingerprints, by the keys of `PARTS`, of a backbone as it was loaded.

    That of the chat template is stored with each task that is written with it.

    Raises:
        RetainError: when several processes have loaded different ones.
    """
    tokenizer, config = backbone.tokenizer, backbone.model.config.to_dict()
    found = {
        "backbone": fingerprint(backbone.model),
        "backbone_config": _sha256(
            {key: value for key, value in config.items() if key[0] != "_" and key not in INCIDENTAL}
        ),
        "backbone_tokenizer": _sha256(_tokenization(tokenizer)),
        "backbone_special_tokens": _sha256(
            [tokenizer.special_tokens_map, backbone.pad_id, backbone.end_ids]
        ),
    }
    for other in processes.gather([found]):
        parts = [words for key, words in PARTS.items() if found.get(key) != other.get(key)]
        if parts:
            raise RetainError(
                f"backbone '{backbone.name}': the processes have loaded others ({', '.join(parts)} "
                "differ); give every machine the same files"
            )
    return found


def template_of(backbone: Backbone) -> str:
    """Returns a sha256 of the chat template."""
    return _sha256(backbone.tokenizer.chat_template)


def _tokenization(tokenizer: Any) -> Any:
    """The settings of a tokenizer that decide how a text becomes tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return tokenizer.get_vocab()
    values = json.loads(backend.to_str())
    # These two are arguments of the last call, not properties of the tokenizer.
    return {key: value for key, value in values.items() if key not in ("truncation", "padding")}


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def refuse_other_backbone(
    stored: Mapping[str, str], loaded: Mapping[str, str], run: Path, name: str
) -> str:
    """Refuses a backbone that is not the one that a run was learned on.

    Args:
        stored: the run's `environment.json`.
        loaded: the backbone's `fingerprints`.
        run: the run's folder.
        name: the backbone's name.

    Returns:
        A warning, or an empty text. Under another version of the libraries that write them, the
        fingerprints of all but the weights may differ although the backbone is the same.

    Raises:
        RetainError: names the parts that differ, or one that the run does not have.
    """
    if missing := [key for key in loaded if key not in stored]:
        raise RetainError(
            f"{run / ENVIRONMENT}: has no '{missing[0]}'; restore it from a copy of the run"
        )
    differ = {key: PARTS[key] for key in loaded if stored[key] != loaded[key]}
    if not differ:
        return ""
    parts, changed = " and ".join(differ.values()), changes(stored)
    comparable = all(stored.get(name) == version(name) for name in ("transformers", "tokenizers"))
    if "backbone" in differ or comparable:
        raise RetainError(
            f"{run}: learned on other {parts} than backbone '{name}' now has; restore it, or start "
            f"another run{f' ({changed})' if changed else ''}"
        )
    return f"backbone '{name}': other {parts} than the run was begun with, or other libraries"


def changes(stored: Mapping[str, str]) -> str:
    """A sentence on libraries of other versions than the run was begun with; empty without any."""
    differ = other_versions(stored)
    return f"begun with other versions: {', '.join(differ)}; numbers may differ" if differ else ""


def other_versions(stored: Mapping[str, str], patches: bool = True) -> list[str]:
    """Phrases on libraries whose version changed.

    Args:
        stored: versions that a run was begun with.
        patches: whether to list those whose first two numbers agree.
    """
    present = versions()
    if PACKAGE in stored and find_spec(PACKAGE) is not None:
        present[PACKAGE] = version(PACKAGE)
    return [
        f"{name} {stored[name]} is now {now}"
        for name, now in present.items()
        if name in stored and stored[name] != now
        if patches or str(stored[name]).split(".")[:2] != now.split(".")[:2]
    ]
