"""Export of a run for other tools: PEFT adapters, or one merged model."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from transformers.utils import GENERATION_CONFIG_NAME

from retain.backbone.losses import IGNORED
from retain.backbone.quantization import dequantize, is_quantized, loading_code
from retain.errors import RetainError
from retain.layers.lora_pool import ADAPTER, ADAPTER_CONFIG, LoraPool
from retain.layers.soft_prompt import PromptPool
from retain.learner.learned_model import LearnedModel
from retain.report import RunSummary, markdown, summarise
from retain.runs.outputs import check_folder
from retain.system.files import (
    remove_folders,
    remove_left,
    temporary_of,
    write_text,
    writing,
)
from retain.system.printing import escaped

CHECKED = 8
"""Examples on which a merged model is compared with its run, where rounding differs."""
ROUNDING = 0.1
"""Largest mean difference of their logits, as a share of the logits' spread."""


def export(learned: LearnedModel, folder: Path, mixture: Mapping[str, float] | None) -> str:
    """Writes a run's blocks as PEFT adapters, or one merged model, with a model card.

    Blocks are LoRA adapters, or the soft prompts of sapt-prompt, which cannot be merged.

    Args:
        learned: a loaded run; after a merge it cannot be used any more.
        folder: is created; if it exists, it must be empty.
        mixture: finite weights by task name, by which blocks are merged. None exports the adapters
            unchanged, or the model if the method's weights do not depend on the input.

    Returns:
        A sentence that says what was written.

    Raises:
        RetainError: if the folder has files, a task has no block, a weight is not finite, the
            method keeps no block, or blocks merged into a quantised backbone answer otherwise.
    """
    check_target(folder)
    learned.require_ready()
    weights = _weights(learned, mixture)
    place = temporary_of(_unfinished(folder))
    with writing(folder):
        place.mkdir(parents=True)
    try:
        with writing(folder):
            written = place / folder.name
            description = _write(learned, written, weights, mixture)
            if _stays(folder):
                for path in written.iterdir():
                    path.rename(folder / path.name)
            else:
                if folder.exists():
                    folder.rmdir()
                written.rename(folder)  # at once, so a killed export leaves no part of it
    finally:
        remove_folders(place)
    return f"wrote {folder}: {description}"


def check_target(folder: Path) -> None:
    """Raises RetainError unless a folder is new or empty. Removes what a killed export left."""
    if folder.name in ("", ".."):
        raise RetainError(f"{folder}: has no name of its own; name an empty or new folder")
    check_folder(folder)
    remove_left(_unfinished(folder))
    if os.path.lexists(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise RetainError(f"{folder}: is not an empty folder; name another one")


def _stays(folder: Path) -> bool:
    """Tells whether an empty folder is filled where it is: a link, or a volume of a container."""
    if not folder.is_dir():
        return False
    return folder.is_symlink() or folder.is_mount() or not os.access(folder.parent, os.W_OK)


def _unfinished(folder: Path) -> Path:
    """A name that nobody else gives, for what is being written; in a folder that stays."""
    name = f"{folder.name}.retain-export"
    return folder / name if _stays(folder) else folder.with_name(name)


def _write(
    learned: LearnedModel,
    folder: Path,
    weights: list[float] | None,
    mixture: Mapping[str, float] | None,
) -> str:
    """Writes the adapters or the model, and the card, into a new folder; returns what they are."""
    if weights is None:
        description = _copy_adapters(learned, folder)
        code = _load_adapter(learned, folder.name)
    else:
        description = _save_merged(learned, folder, weights)
        code = _load_merged(learned, folder.name)
        if mixture is not None:
            blocks = ", ".join(f"{name} × {weight:g}" for name, weight in mixture.items())
            description += f", with blocks merged into the backbone by these weights: {blocks}"
    if learned.method.not_exported:
        description += f". {learned.method.not_exported.removesuffix('.')}"
    write_text(folder / "README.md", _card(learned, description, code, mixture))
    return description


def _weights(learned: LearnedModel, mixture: Mapping[str, float] | None) -> list[float] | None:
    """Returns the weight of each block in a merged model; None to export separate adapters."""
    pool, path = learned.method.exported_pool, learned.run.path
    fixed = learned.method.traits.fixed_mixture
    if pool is None and not fixed:
        raise RetainError(
            f"{path}: its method keeps neither blocks that stand alone nor a full model; use the "
            "run with retain generate or retain serve"
        )
    shared = isinstance(pool, LoraPool) and len({*pool.sharing}) < len(pool.blocks)
    if mixture is None and shared:
        raise RetainError(
            f"{path}: tasks share blocks since retain compact, so they have no adapters of their "
            "own; merge with --task or --mixture, or roll the compaction back first"
        )
    if mixture is None:
        return [1.0] * len(pool.blocks if pool else ()) if fixed else None
    if isinstance(pool, PromptPool):
        raise RetainError(
            f"{path}: soft prompts cannot be merged into weights; leave out task and mixture"
        )
    if pool is None or fixed:
        raise RetainError(
            f"{path}: its method has one set of weights only; leave out task and mixture"
        )
    unknown = [name for name in mixture if name not in pool.blocks]
    if unknown:
        known = ", ".join(pool.blocks)
        raise RetainError(f"{path}: no task '{unknown[0]}'; name one of {known}")
    for name, weight in mixture.items():
        if not torch.tensor(weight, dtype=torch.float32).isfinite():
            raise RetainError(
                f"mixture: the weight of '{name}' is {weight:g}; give a number that is finite in "
                "float32"
            )
    return [mixture.get(name, 0.0) for name in pool.blocks]


def _save_merged(learned: LearnedModel, folder: Path, weights: list[float]) -> str:
    """Writes a model that transformers loads, with the blocks merged into its weights.

    Returns:
        What it is.

    Raises:
        RetainError: if the backbone is quantised, and the merged model's logits are not the run's.
    """
    model, pool = learned.backbone.model, learned.method.exported_pool
    description = "one model"
    if isinstance(pool, LoraPool):
        if is_quantized(model):
            description = f"one model, in {model.dtype} instead of its quantised weights"
            expected = _logits(learned, pool, weights)
            dequantize(model)  # 4 and 8 bits have no room for a block
            pool.merge(weights)
            _refuse_others(learned, expected, _logits(learned, None, weights))
        else:
            pool.merge(weights)
    for name, _ in list(model.named_children()):
        if name.startswith("retain_"):  # a module of the method, such as a router
            delattr(model, name)
    model.save_pretrained(folder)
    # The model's in memory is for scoring; the one of the backbone is what other tools expect.
    write_text(folder / GENERATION_CONFIG_NAME, learned.backbone.generation_settings)
    learned.backbone.tokenizer.save_pretrained(folder)
    return description


def _logits(learned: LearnedModel, pool: LoraPool | None, weights: list[float]) -> Tensor:
    """Computes the logits (N, V) at the first tokens of answers to the newest test examples."""
    backbone, examples = learned.backbone, learned.tasks[-1].test[:CHECKED]
    rows = [backbone.encode(example, templated=learned.templated()) for example in examples]
    batch = backbone.collate(rows)
    if pool is not None:
        pool.use(torch.tensor([weights] * len(rows), device=backbone.device))
    with torch.no_grad():
        logits, targets = backbone.answer_logits(batch)
    return logits[targets != IGNORED].float()


def _refuse_others(learned: LearnedModel, expected: Tensor, merged: Tensor) -> None:
    """Raises a RetainError if logits (N, V) differ by more than the rounding to few bits."""
    spread = expected.std(1).mean().clamp(min=1e-12)
    difference = float((merged - expected).abs().mean() / spread)
    if not difference <= ROUNDING:
        raise RetainError(
            f"{learned.run.path}: with its blocks merged into the dequantised backbone its logits "
            f"differ by {difference:.2f} of their spread; export adapters, without task and mixture"
        )


def _copy_adapters(learned: LearnedModel, folder: Path) -> str:
    """Copies each task's block into its own folder; returns a description of what was written."""
    for source in learned.run.learned():
        target = folder / source.name
        target.mkdir(parents=True)
        for name in (ADAPTER, ADAPTER_CONFIG):
            shutil.copyfile(source / name, target / name)
    needs_task_id = learned.method.traits.needs_task_id
    how = "selects one by the task's name" if needs_task_id else "weights them for each prompt"
    description = (
        f"{len(learned.tasks)} PEFT adapters, one per task. The run {how}, so no single merged "
        "model is equivalent"
    )
    if not isinstance(learned.method.exported_pool, LoraPool):
        return description
    return f"{description}; to merge anyway use --task or --mixture"


def _card(
    learned: LearnedModel, description: str, code: list[str], mixture: Mapping[str, float] | None
) -> str:
    """Returns the model card, with the code lines that load what was written."""
    summary = summarise(learned.run.path)
    text, scores = f"From the run {summary.label}: {description}.", markdown([summary])
    if mixture is not None:
        text += (
            " It was not scored: the scores below are those of the routed run, which weights its "
            "blocks for each input."
        )
        scores = _matrix(summary)
    subject = "" if learned.method.traits.fixed_mixture else " of the routed run"
    card = "\n".join(
        [
            "---",
            f"base_model: {learned.backbone.name}",
            f"library_name: {code[0].split()[1]}",
            "---",
            "",
            f"# {summary.label}",
            "",
            text,
            "",
            "```python",
            *code,
            "```",
            "",
            f"## Scores{subject}",
            "",
            scores,
        ]
    )
    return escaped(card)


def _matrix(summary: RunSummary) -> str:
    """Returns the score matrix without averages, which would be read as the merged model's."""
    lines = markdown([replace(summary, metrics={})]).splitlines()
    return "\n".join(line for line in lines if line.startswith("|")) + "\n"


def _load_merged(learned: LearnedModel, name: str) -> list[str]:
    """Returns code lines that load the merged model in the folder `name`."""
    auto = _auto_class(learned)
    return [
        f"from transformers import {auto}, AutoTokenizer",
        f"model = {auto}.from_pretrained({name!r})",
        f"tokenizer = AutoTokenizer.from_pretrained({name!r})",
    ]


def _load_adapter(learned: LearnedModel, name: str) -> list[str]:
    """Returns code lines that load the newest of the adapters in the folder `name`."""
    auto, newest = _auto_class(learned), f"{name}/{learned.run.learned()[-1].name}"
    source = learned.backbone.source
    imports, argument = loading_code(source.quantization, source.dtype)
    return [
        "from peft import PeftModel",
        *imports,
        f"from transformers import {auto}",
        f"model = PeftModel.from_pretrained({auto}.from_pretrained({learned.backbone.name!r}"
        f"{argument}), {newest!r})",
    ]


def _auto_class(learned: LearnedModel) -> str:
    """Returns the name of transformers' class that loads the backbone."""
    return (
        "AutoModelForSeq2SeqLM" if learned.backbone.is_encoder_decoder else "AutoModelForCausalLM"
    )
