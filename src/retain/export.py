"""A run's result for the tools that people already have: PEFT adapters, or one merged model."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from retain.errors import RetainError
from retain.layers.pooled_linear import ADAPTER, ADAPTER_CONFIG, LoraPool
from retain.layers.soft_prompt import PromptPool
from retain.learner import Learner
from retain.report import RunSummary, markdown, summarise
from retain.system.files import remove_folders, write_text


def export(learner: Learner, folder: Path, mixture: Mapping[str, float] | None) -> str:
    """Writes a run's blocks as PEFT adapters, or one merged model, with a model card.

    Blocks are LoRAs, or the soft prompts of sapt-prompt, which cannot be merged.

    Args:
        learner: a loaded run; a merged one is of no more use.
        folder: is made, and has to be empty.
        mixture: fixed and finite weights by task name, to merge blocks with; None for the
            adapters as they are, or the model where its weights do not depend on the input.

    Returns:
        A sentence on what was written.

    Raises:
        RetainError: when the folder has files, a task has no block, a weight is not finite, or the
            method keeps no block.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RetainError(f"{folder}: is not an empty folder; name another one")
    learner.refuse_unready()
    weights = _weights(learner, mixture)
    place = folder.with_name(f".{folder.name}.tmp")
    remove_folders(place)
    if weights is None:
        said = _copy_adapters(learner, place)
        load = _load_adapter(learner, folder.name)
    else:
        _save_merged(learner, place, weights)
        said, load = "one model", _load_merged(learner, folder.name)
        if mixture is not None:
            blocks = ", ".join(f"{name} × {weight:g}" for name, weight in mixture.items())
            said += f", with blocks merged into the backbone by these weights: {blocks}"
    write_text(place / "README.md", _card(learner, said, load, mixture))
    if folder.exists():
        folder.rmdir()
    place.rename(folder)
    return f"wrote {folder}: {said}"


def _weights(learner: Learner, mixture: Mapping[str, float] | None) -> list[float] | None:
    """Of each block, to merge them with; None when they are to stay apart."""
    pool, path = learner.method.exported_pool, learner.run.path
    fixed = learner.method.traits.fixed_mixture
    if pool is None and not fixed:
        raise RetainError(
            f"{path}: its method keeps neither blocks that stand alone nor a full model; use the "
            "run itself"
        )
    if mixture is None:
        return [1.0] * len(pool.blocks if pool else ()) if fixed else None
    if isinstance(pool, PromptPool):
        raise RetainError(
            f"{path}: soft prompts cannot be merged into weights; leave out task and mixture"
        )
    if pool is None or fixed:
        raise RetainError(f"{path}: there is one set of weights; leave out task and mixture")
    unknown = [name for name in mixture if name not in pool.blocks]
    if unknown:
        known = ", ".join(pool.blocks)
        raise RetainError(f"{path}: no task '{unknown[0]}'; name one of {known}")
    for name, weight in mixture.items():
        if not torch.tensor(weight, dtype=torch.float32).isfinite():
            raise RetainError(
                f"mixture: the weight of '{name}' is {weight:g}; give a finite number of float32"
            )
    return [mixture.get(name, 0.0) for name in pool.blocks]


def _save_merged(learner: Learner, folder: Path, weights: list[float]) -> None:
    """A model that transformers loads, with the blocks in its own weights."""
    model, pool = learner.backbone.model, learner.method.exported_pool
    if isinstance(pool, LoraPool):
        pool.merge(weights)
    for name, _ in list(model.named_children()):
        if name.startswith("retain_"):  # a method's own, such as a router
            delattr(model, name)
    model.save_pretrained(folder)
    learner.backbone.tokenizer.save_pretrained(folder)


def _copy_adapters(learner: Learner, folder: Path) -> str:
    """Each task's block in a folder of its own, as it lies in the run."""
    for source in learner.run.learned():
        target = folder / source.name
        target.mkdir(parents=True)
        for name in (ADAPTER, ADAPTER_CONFIG):
            shutil.copyfile(source / name, target / name)
    named = learner.method.traits.needs_task_id
    how = "takes the one of the task's name" if named else "weights them anew for each prompt"
    said = (
        f"{len(learner.tasks)} PEFT adapters, one per task. The run {how}, so no single merged "
        "model is equivalent"
    )
    if not isinstance(learner.method.exported_pool, LoraPool):
        return said
    return f"{said}; to merge anyway use --task or --mixture"


def _card(learner: Learner, said: str, load: list[str], mixture: Mapping[str, float] | None) -> str:
    """The model card, with the lines that load what was written."""
    summary = summarise(learner.run.path)
    text, scores = f"Of the run {summary.label}: {said}.", markdown([summary])
    if mixture is not None:
        text += (
            " It was not scored: the scores below are those of the routed run, which weighs its "
            "blocks for each input."
        )
        scores = _matrix(summary)
    of = "" if learner.method.traits.fixed_mixture else " of the routed run"
    return "\n".join(
        [
            "---",
            f"base_model: {learner.backbone.name}",
            f"library_name: {load[0].split()[1]}",
            "---",
            "",
            f"# {summary.label}",
            "",
            text,
            "",
            "```python",
            *load,
            "```",
            "",
            f"## Scores{of}",
            "",
            scores,
        ]
    )


def _matrix(summary: RunSummary) -> str:
    """The score matrix without averages, which would be taken for those of a merged model."""
    lines = markdown([replace(summary, metrics={})]).splitlines()
    return "\n".join(line for line in lines if line.startswith("|")) + "\n"


def _load_merged(learner: Learner, name: str) -> list[str]:
    """Lines that load the one model in the folder `name`."""
    auto = _auto(learner)
    return [
        f"from transformers import {auto}, AutoTokenizer",
        f"model = {auto}.from_pretrained({name!r})",
        f"tokenizer = AutoTokenizer.from_pretrained({name!r})",
    ]


def _load_adapter(learner: Learner, name: str) -> list[str]:
    """Lines that load the newest of the adapters in the folder `name`."""
    auto, newest = _auto(learner), f"{name}/{learner.run.learned()[-1].name}"
    return [
        "from peft import PeftModel",
        f"from transformers import {auto}",
        f"model = PeftModel.from_pretrained({auto}.from_pretrained({learner.backbone.name!r}), "
        f"{newest!r})",
    ]


def _auto(learner: Learner) -> str:
    """The class of transformers that loads the backbone."""
    return (
        "AutoModelForSeq2SeqLM" if learner.backbone.is_encoder_decoder else "AutoModelForCausalLM"
    )
