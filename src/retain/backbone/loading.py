"""Loading a backbone: a hub id, a local folder, a GGUF file, or a model that is loaded already."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import GENERATION_CONFIG_NAME, cached_file

from retain.backbone import quantization
from retain.backbone.backbone import Backbone, BackboneConfig
from retain.backbone.checkpoint import check_folder
from retain.backbone.out_of_memory import memory_advice
from retain.backbone.place import path_of
from retain.backbone.precision import (
    SMALLER,
    chosen_dtype,
    device_of,
    refuse_full_fine_tuning,
    refuse_lacking,
)
from retain.backbone.probe import try_out
from retain.backbone.text import PromptConfig
from retain.errors import RetainError, first_line
from retain.system import processes
from retain.system.files import read_json, read_text

NAMED = 3
"""How many weights an error names."""


def load_backbone(
    config: BackboneConfig, prompt: PromptConfig | None = None, trains_all: bool = False
) -> Backbone:
    """Loads a model, frozen and in evaluation mode, and its tokenizer.

    Args:
        config: which model, and how.
        prompt: how prompts become tokens.
        trains_all: whether the model's own weights are to be trained.

    Raises:
        RetainError: if there is no such model, a file is damaged, weights are missing, which
            transformers would fill with random ones, or have no place, which it would leave out, or
            the model is of a class, or in a format, that retain cannot train.
    """
    dtype = chosen_dtype(config.dtype, config.device, trains_all)
    config = config.model_copy(update={"dtype": dtype})
    if trains_all:
        refuse_full_fine_tuning(config.dtype, config.quantization is not None)
    source, options = _found(config)
    refuse_damaged(config)
    device = _connected(device_of(config.device))
    _refuse_missing(device)
    refuse_lacking(config.dtype, device, "backbone.dtype")
    try:
        with _silenced():
            model_config = AutoConfig.from_pretrained(source, **options)
            stored = getattr(model_config, "quantization_config", None)
            if trains_all:
                refuse_full_fine_tuning(config.dtype, stored is not None)
            if config.quantization is not None and "gguf_file" in options:
                raise RetainError(
                    "backbone.quantization: not for a GGUF file; name the model folder or hub id "
                    "that it was made from, or leave it out"
                )
            quantized = quantization.options(config.quantization, stored, config.dtype, device)
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
            with memory_advice(f"backbone '{config.name}'", f"take {SMALLER}"):
                model, loaded = _auto_class(model_config).from_pretrained(
                    source,
                    dtype=getattr(torch, config.dtype),
                    attn_implementation=config.attention,
                    device_map={"": device},  # tensor by tensor: the host has no copy of them all
                    use_safetensors="gguf_file" not in options,  # nothing is unpickled
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # they are refused below, by name
                    **options,
                    **quantized,
                )
    except RetainError:
        raise
    except Exception as error:  # transformers raises many types for a missing or damaged model
        if "trust_remote_code" in str(error) and not config.trust_remote_code:
            raise RetainError(
                f"backbone '{config.name}': needs to run code from its repository; if you trust "
                "it, set backbone.trust_remote_code: true"
            ) from None
        advice = "name a hub id, a model folder or a GGUF file"
        advice = f"restore its files, or {advice}" if Path(source).is_dir() else advice
        raise RetainError(
            f"backbone '{config.name}': cannot be loaded ({first_line(error)}); {advice}"
        ) from error
    if getattr(model, "_hf_peft_config_loaded", False):
        raise RetainError(
            f"backbone '{config.name}': has a PEFT adapter beside it (adapter_config.json); merge "
            "it into the model with peft's merge_and_unload and save that, or move it elsewhere"
        )
    _refuse_other_weights(config.name, loaded)
    settings = _generation_settings(source, options)
    quantization.prepare(model)
    _multiply_as_tf32(device)
    backbone = Backbone(model, tokenizer, config, prompt or PromptConfig())
    backbone.generation_settings = settings or backbone.generation_settings
    try_out(backbone)
    return backbone


def load_skeleton(config: BackboneConfig, prompt: PromptConfig | None = None) -> Backbone:
    """Makes the backbone that `load_backbone` loads without its weights, on torch's meta device.

    It says how large everything is. Layers that would be quantised have their plain shape.

    Raises:
        RetainError: if there is no such model.
    """
    source, options = _found(config)
    refuse_damaged(config, needs_weights=False)
    try:
        with _silenced():
            model_config = AutoConfig.from_pretrained(source, **options)
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
            if hasattr(model_config, "quantization_config"):
                quantization.refuse_stored(model_config.quantization_config, config.quantization)
                del model_config.quantization_config
            with torch.device("meta"):
                model = _auto_class(model_config).from_config(
                    model_config,
                    dtype=getattr(torch, config.dtype),
                    attn_implementation=config.attention,
                    trust_remote_code=config.trust_remote_code,
                )
    except RetainError:
        raise
    except Exception as error:  # transformers raises many types for a missing or damaged model
        raise RetainError(
            f"backbone '{config.name}': its size cannot be read ({first_line(error)})"
        ) from error
    return Backbone(model, tokenizer, config, prompt or PromptConfig())


def _found(config: BackboneConfig) -> tuple[str, dict[str, Any]]:
    """Returns what transformers is to load a model by, and with which options.

    Raises:
        RetainError: if a name that can only be a path leads to no model.
    """
    if not config.name:
        raise RetainError(
            "backbone: its name is empty; name a hub id, a model folder or a GGUF file"
        )
    path = path_of(config.name)
    options: dict[str, Any] = {"trust_remote_code": config.trust_remote_code}
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise RetainError(f"backbone {path}: no such file; check the path")
        return str(path.parent), {**options, "gguf_file": path.name}
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise RetainError(
                f"backbone {path}: this folder is not a model (it has no config.json); "
                "name a folder saved by transformers, a GGUF file or a hub id"
            )
        return str(path), options
    if path.exists():
        raise RetainError(
            f"backbone {path}: neither a model folder nor a .gguf file; name one of these"
        )
    return config.name, {**options, "revision": config.revision}


@contextmanager
def _silenced() -> Iterator[None]:
    """Silences what transformers says while it loads."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        transformers.logging.enable_progress_bar()


def refuse_damaged(config: BackboneConfig, needs_weights: bool = True) -> None:
    """Looks at the files of a backbone that is a folder, before anything of them is loaded.

    Raises:
        RetainError: as `check_folder`, or for a quantization through which retain does not train.
    """
    try:
        source, options = _found(config)
    except RetainError:  # which loading it says
        return
    folder = Path(source)
    if "gguf_file" in options or not folder.is_dir():
        return  # a GGUF file, or a hub's model
    try:
        stored = check_folder(folder, needs_weights)
    except RetainError as error:
        raise RetainError(f"backbone '{config.name}': {error}") from None
    if stored is not None:
        quantization.refuse_stored(stored, config.quantization)


def _generation_settings(source: str, options: Mapping[str, Any]) -> str | None:
    """Returns the text of a model's generation_config.json; None if it has none.

    Raises:
        RetainError: if it is damaged; transformers would do without it, and so without the tokens
            that begin and end answers.
    """
    path = cached_file(
        source,
        GENERATION_CONFIG_NAME,
        revision=options.get("revision"),
        local_files_only=True,  # it was loaded with the model
        _raise_exceptions_for_missing_entries=False,
    )
    if path is None:
        return None
    if not isinstance(read_json(Path(path)), dict):
        raise RetainError(f"{path}: is no JSON object; restore it")
    return read_text(Path(path))


def _auto_class(config: PreTrainedConfig) -> Any:
    """Returns the auto class that loads a model of this config."""
    kinds = [AutoModelForCausalLM, AutoModelForSeq2SeqLM]
    if config.is_encoder_decoder:
        kinds.reverse()
    known = (kind for kind in kinds if type(config) in kind._model_mapping)
    return next(known, kinds[0])  # a class from a model's own repository is in neither


def _refuse_other_weights(name: str, loaded: Mapping[str, Any]) -> None:
    """Raises RetainError if the files' weights are not those that the config describes."""
    if loaded["mismatched_keys"]:
        key, stored, expected = min(loaded["mismatched_keys"])
        raise RetainError(
            f"backbone '{name}': {key} has the shape {tuple(stored)} in its files and "
            f"{tuple(expected)} by its config.json; restore its files"
        )
    if loaded["missing_keys"]:
        raise RetainError(
            f"backbone '{name}': has no weights for {min(loaded['missing_keys'])}; "
            "restore its files"
        )
    # Without those that the class leaves out by design; transformers has taken them away.
    if unexpected := sorted(loaded["unexpected_keys"]):
        more = f" and {len(unexpected) - NAMED} more" if len(unexpected) > NAMED else ""
        raise RetainError(
            f"backbone '{name}': its config.json has no place for these weights of its files: "
            f"{', '.join(unexpected[:NAMED])}{more}; restore the config, or save the model again "
            "without them"
        )


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
        RetainError: when this is no such pair, the model cannot generate text or has no weights,
            carries layers of retain already, or is of a class that retain cannot train.
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
    dtypes = get_args(BackboneConfig.model_fields["dtype"].annotation)[1:]  # without auto
    if dtype not in dtypes:
        raise RetainError(f"backbone: the model is in {dtype}; load it in {', '.join(dtypes)}")
    quantization.prepare(model)
    device = _connected(str(model.device))
    with memory_advice(f"backbone.device '{device}'", f"take {SMALLER}"):
        model.to(device)
    _multiply_as_tf32(device)
    own_code = type(model).__module__.startswith("transformers_modules.")
    named = {
        "name": model.name_or_path,
        "dtype": dtype,
        "quantization": quantization.kind_of(model),
        "trust_remote_code": own_code,
    }
    source = source or BackboneConfig.model_validate(named)
    backbone = Backbone(model, tokenizer, source, prompt or PromptConfig())
    try_out(backbone)
    return backbone


def _connected(device: str) -> str:
    """Returns the device of this process, which is its own one where several run."""
    if device.partition(":")[2] not in ("", "0"):
        raise RetainError(
            f"backbone.device '{device}': training takes the first visible device; "
            "set CUDA_VISIBLE_DEVICES and name no number"
        )
    return processes.connect(device == "cpu") or device


def _refuse_missing(device: str) -> None:
    """Raises RetainError for a device that is not there, before a model is loaded to it."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter where torch has no CUDA
        raise RetainError(
            f"backbone.device '{device}': {first_line(error)}; leave it out, or take another"
        ) from None


def _multiply_as_tf32(device: str) -> None:
    """Multiplies what stays in float32 as TF32, on a GPU."""
    if device.startswith("cuda"):
        torch.set_float32_matmul_precision("high")
