"""Export of a run for other tools: PEFT adapters, or one merged model."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp

import torch
from transformers.utils import GENERATION_CONFIG_NAME

from retain.errors import RetainError
from retain.layers.pooled_linear import ADAPTER, ADAPTER_CONFIG, LoraPool
from retain.layers.soft_prompt import PromptPool
from retain.learner import Learner
from retain.report import RunSummary, markdown, summarise
from retain.runs.outputs import check_folder
from retain.system.files import remove_folders, write_text, writing
from retain.system.printing import escaped


def export(learner: Learner, folder: Path, mixture: Mapping[str, float] | None) -> str:
    """Writes a run's blocks as PEFT adapters, or one merged model, with a model card.

    Blocks are LoRA adapters, or the soft prompts of sapt-prompt, which cannot be merged.

    Args:
        learner: a loaded run; after a merge it cannot be used any more.
        folder: is created; if it exists, it must be empty.
        mixture: finite weights by task name, by which blocks are merged. None exports the adapters
            unchanged, or the model if the method's weights do not depend on the input.

    Returns:
        A sentence that says what was written.

    Raises:
        RetainError: if the folder has files, a task has no block, a weight is not finite, or the
            method keeps no block.
    """
    if folder.name in ("", ".."):
        raise RetainError(f"{folder}: has no name of its own; name an empty or new folder")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RetainError(f"{folder}: is not an empty folder; name another one")
    check_folder(folder)
    learner.require_ready()
    weights = _weights(learner, mixture)
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        place = Path(mkdtemp(prefix=".export.", suffix=".tmp", dir=folder.parent))
    try:
        with writing(folder):
            description = _write(learner, place / folder.name, weights, mixture)
            if folder.exists():
                folder.rmdir()
            (place / folder.name).rename(folder)
    finally:
        remove_folders(place)
    return f"wrote {folder}: {description}"


def _write(
    learner: Learner,
    folder: Path,
    weights: list[float] | None,
    mixture: Mapping[str, float] | None,
) -> str:
    """Writes the adapters or the model, and the card, into a new folder; returns what they are."""
    if weights is None:
        description = _copy_adapters(learner, folder)
        code = _load_adapter(learner, folder.name)
    else:
        _save_merged(learner, folder, weights)
        description, code = "one model", _load_merged(learner, folder.name)
        if mixture is not None:
            blocks = ", ".join(f"{name} × {weight:g}" for name, weight in mixture.items())
            description += f", with blocks merged into the backbone by these weights: {blocks}"
    write_text(folder / "README.md", _card(learner, description, code, mixture))
    return description


def _weights(learner: Learner, mixture: Mapping[str, float] | None) -> list[float] | None:
    """Returns the weight of each block in a merged model; None to export separate adapters."""
    pool, path = learner.method.exported_pool, learner.run.path
    fixed = learner.method.traits.fixed_mixture
    if pool is None and not fixed:
        raise RetainError(
            f"{path}: its method keeps neither blocks that stand alone nor a full model; use the "
            "run with retain generate or retain serve"
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


def _save_merged(learner: Learner, folder: Path, weights: list[float]) -> None:
    """Writes a model that transformers loads, with the blocks merged into its weights."""
    model, pool = learner.backbone.model, learner.method.exported_pool
    if isinstance(pool, LoraPool):
        pool.merge(weights)
    for name, _ in list(model.named_children()):
        if name.startswith("retain_"):  # a module of the method, such as a router
            delattr(model, name)
    model.save_pretrained(folder)
    # The model's in memory is for scoring; the one of the backbone is what other tools expect.
    write_text(folder / GENERATION_CONFIG_NAME, learner.backbone.generation_settings)
    learner.backbone.tokenizer.save_pretrained(folder)


def _copy_adapters(learner: Learner, folder: Path) -> str:
    """Copies each task's block into its own folder; returns a description of what was written."""
    for source in learner.run.learned():
        target = folder / source.name
        target.mkdir(parents=True)
        for name in (ADAPTER, ADAPTER_CONFIG):
            shutil.copyfile(source / name, target / name)
    needs_task_id = learner.method.traits.needs_task_id
    how = "selects one by the task's name" if needs_task_id else "weights them for each prompt"
    description = (
        f"{len(learner.tasks)} PEFT adapters, one per task. The run {how}, so no single merged "
        "model is equivalent"
    )
    if not isinstance(learner.method.exported_pool, LoraPool):
        return description
    return f"{description}; to merge anyway use --task or --mixture"


def _card(
    learner: Learner, description: str, code: list[str], mixture: Mapping[str, float] | None
) -> str:
    """Returns the model card, with the code lines that load what was written."""
    summary = summarise(learner.run.path)
    text, scores = f"From the run {summary.label}: {description}.", markdown([summary])
    if mixture is not None:
        text += (
            " It was not scored: the scores below are those of the routed run, which weights its "
            "blocks for each input."
        )
        scores = _matrix(summary)
    subject = "" if learner.method.traits.fixed_mixture else " of the routed run"
    card = "\n".join(
        [
            "---",
            f"base_model: {learner.backbone.name}",
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


def _load_merged(learner: Learner, name: str) -> list[str]:
    """Returns code lines that load the merged model in the folder `name`."""
    auto = _auto_class(learner)
    return [
        f"from transformers import {auto}, AutoTokenizer",
        f"model = {auto}.from_pretrained({name!r})",
        f"tokenizer = AutoTokenizer.from_pretrained({name!r})",
    ]


def _load_adapter(learner: Learner, name: str) -> list[str]:
    """Returns code lines that load the newest of the adapters in the folder `name`."""
    auto, newest = _auto_class(learner), f"{name}/{learner.run.learned()[-1].name}"
    return [
        "from peft import PeftModel",
        f"from transformers import {auto}",
        f"model = PeftModel.from_pretrained({auto}.from_pretrained({learner.backbone.name!r}), "
        f"{newest!r})",
    ]


def _auto_class(learner: Learner) -> str:
    """Returns the name of transformers' class that loads the backbone."""
    return (
        "AutoModelForSeq2SeqLM" if learner.backbone.is_encoder_decoder else "AutoModelForCausalLM"
    )
