"""Loading a backbone: a hub id, a local folder, a GGUF file, or a model that is loaded already."""

from __future__ import annotations

from typing import Any, get_args

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from retain.backbone.backbone import Backbone, BackboneConfig
from retain.backbone.place import path_of
from retain.backbone.text import PromptConfig
from retain.errors import RetainError, first_line
from retain.system import processes


def load_backbone(config: BackboneConfig, prompt: PromptConfig | None = None) -> Backbone:
    """Loads a model, frozen and in evaluation mode, and its tokenizer.

    Raises:
        RetainError: if there is no such model, a file is damaged, or weights are missing, which
            transformers would fill with random ones.
    """
    if not config.name:
        raise RetainError(
            "backbone: its name is empty; name a hub id, a model folder or a GGUF file"
        )
    path = path_of(config.name)
    source: str
    options: dict[str, Any] = {"trust_remote_code": config.trust_remote_code}
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise RetainError(f"backbone {path}: no such file; check the path")
        source, options["gguf_file"] = str(path.parent), path.name
    elif path.is_dir():
        if not (path / "config.json").is_file():
            raise RetainError(
                f"backbone {path}: this folder is not a model (it has no config.json); "
                "name a folder saved by transformers, a GGUF file or a hub id"
            )
        source = str(path)
    elif path.exists():
        raise RetainError(
            f"backbone {path}: neither a model folder nor a .gguf file; name one of these"
        )
    else:
        source, options["revision"] = config.name, config.revision
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        model_config = AutoConfig.from_pretrained(source, **options)
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        kind = AutoModelForSeq2SeqLM if model_config.is_encoder_decoder else AutoModelForCausalLM
        model, loaded = kind.from_pretrained(
            source,
            dtype=getattr(torch, config.dtype),
            attn_implementation=config.attention,
            use_safetensors="gguf_file" not in options,  # nothing is unpickled
            output_loading_info=True,
            **options,
        )
    except Exception as error:  # transformers raises many types for a missing or damaged model
        if "trust_remote_code" in str(error) and not config.trust_remote_code:
            raise RetainError(
                f"backbone '{config.name}': needs to run code from its repository; if you trust "
                "it, set backbone.trust_remote_code: true"
            ) from None
        raise RetainError(
            f"backbone '{config.name}': cannot be loaded ({first_line(error)}); "
            "name a hub id, a model folder or a GGUF file"
        ) from error
    finally:
        transformers.logging.set_verbosity(verbosity)
        transformers.logging.enable_progress_bar()
    if loaded["missing_keys"]:
        raise RetainError(
            f"backbone '{config.name}': has no weights for {min(loaded['missing_keys'])}; "
            "restore its files"
        )
    _place(model, config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return Backbone(model, tokenizer, config, prompt or PromptConfig())


LoadedModel = tuple[PreTrainedModel, PreTrainedTokenizerBase]
"""A model of transformers with its tokenizer."""


def wrap_loaded(
    loaded: LoadedModel, prompt: PromptConfig | None = None, source: BackboneConfig | None = None
) -> Backbone:
    """Makes a backbone of a model that is loaded already; the model is changed in place.

    Args:
        loaded: the model, where it is to be used, and its tokenizer.
        prompt: how prompts become tokens.
        source: what a run has recorded of it. By default the name that the model was loaded by
            (`model.name_or_path`, which may be empty) and its dtype.

    Raises:
        RetainError: when this is no such pair, the model cannot generate text or has no weights, or
            it carries layers of retain already.
    """
    parts = list(loaded) if isinstance(loaded, tuple | list) else [loaded]
    if len(parts) != 2 or not (
        isinstance(parts[0], PreTrainedModel) and isinstance(parts[1], PreTrainedTokenizerBase)
    ):
        kinds = ", ".join(type(part).__name__ for part in parts)
        raise RetainError(
            "backbone: expected a name, a folder, or a transformers model and its tokenizer, got "
            f"({kinds}); give (model, tokenizer)"
        )
    model, tokenizer = parts
    if not model.can_generate():
        raise RetainError(
            f"backbone: a {type(model).__name__} generates no text; load the model with "
            "AutoModelForCausalLM or AutoModelForSeq2SeqLM"
        )
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        raise RetainError("backbone: the model is on the meta device; load it with its weights")
    if any(type(part).__module__.startswith("retain.") for part in model.modules()):
        raise RetainError("backbone: this model carries a Learner's layers; load a fresh one")
    dtype = str(model.dtype).removeprefix("torch.")
    if dtype not in (dtypes := get_args(BackboneConfig.model_fields["dtype"].annotation)):
        raise RetainError(f"backbone: the model is in {dtype}; load it in {', '.join(dtypes)}")
    _place(model, str(model.device))
    own_code = type(model).__module__.startswith("transformers_modules.")
    named = {"name": model.name_or_path, "dtype": dtype, "trust_remote_code": own_code}
    source = source or BackboneConfig.model_validate(named)
    return Backbone(model, tokenizer, source, prompt or PromptConfig())


def _place(model: PreTrainedModel, device: str) -> None:
    """Moves a model to its device, or to this process's one where several run."""
    if device.partition(":")[2] not in ("", "0"):
        raise RetainError(
            f"backbone.device '{device}': training takes the first visible device; "
            "set CUDA_VISIBLE_DEVICES and name no number"
        )
    device = processes.connect(device == "cpu") or device
    try:
        model.to(device)
    except RuntimeError as error:
        raise RetainError(f"backbone.device '{device}': {first_line(error)}") from None
