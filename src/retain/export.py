"""A run's result for the tools that people already have: PEFT adapters, or one merged model."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from retain.errors import RetainError
from retain.files import remove_folders, write_text
from retain.layers.pooled_linear import ADAPTER, ADAPTER_CONFIG, LoraPool
from retain.learner import Learner
from retain.methods import Method
from retain.report import markdown, sentence, summarise


def export(learner: Learner, folder: Path, mixture: Mapping[str, float] | None) -> str:
    """Writes a run's blocks as PEFT adapters, or one merged model, with a model card.

    Args:
        learner: a loaded run; a merged one is of no more use.
        folder: is made, and has to be empty.
        mixture: fixed weights by task name, to merge blocks with; None for the adapters as they
            are, or the model where its weights do not depend on the input.

    Returns:
        A sentence on what was written.

    Raises:
        RetainError: when the folder has files, a task has no block, or the method keeps none.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RetainError(f"{folder}: is not an empty folder; name another one")
    learner.refuse_unready()
    weights = _weights(learner, mixture)
    place = folder.with_name(f".{folder.name}.tmp")
    remove_folders(place)
    if weights is None:
        said = _copy_adapters(learner, place)
    else:
        _save_merged(learner, place, weights)
        said = "one model, with blocks merged as asked" if mixture else "one model"
    write_text(place / "README.md", _card(learner, said))
    if folder.exists():
        folder.rmdir()
    place.rename(folder)
    return f"wrote {folder}: {said}"


def pool_of(method: Method) -> LoraPool | None:
    """The method's LoRA blocks, if it has some."""
    pool = getattr(getattr(method, "weights", method), "pool", None)
    return pool if isinstance(pool, LoraPool) else None


def _weights(learner: Learner, mixture: Mapping[str, float] | None) -> list[float] | None:
    """Of each block, to merge them with; None when they are to stay apart."""
    pool, path = pool_of(learner.method), learner.run.path
    fixed = learner.method.fixed_mixture
    if mixture is None:
        if pool is None and not fixed:
            raise RetainError(f"{path}: its method keeps neither LoRA blocks nor a whole model")
        return [1.0] * len(pool.blocks if pool else ()) if fixed else None
    if pool is None or fixed:
        raise RetainError(f"{path}: there is one set of weights; leave out task and mixture")
    unknown = [name for name in mixture if name not in pool.blocks]
    if unknown:
        known = ", ".join(pool.blocks)
        raise RetainError(f"{path}: no task '{unknown[0]}'; name one of {known}")
    return [mixture.get(name, 0.0) for name in pool.blocks]


def _save_merged(learner: Learner, folder: Path, weights: list[float]) -> None:
    """A model that transformers loads, with the blocks in its own weights."""
    model, pool = learner.backbone.model, pool_of(learner.method)
    if pool is not None:
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
    return (
        f"{len(learner.tasks)} PEFT adapters; which of them counts depends on the input, so no one "
        "model is the same: name a task or a mixture to merge that"
    )


def _card(learner: Learner, said: str) -> str:
    summary = summarise(learner.run.path)
    head = ["---", f"base_model: {learner.backbone.name}", "library_name: peft", "---"]
    return "\n".join(
        [
            *head,
            "",
            f"# {summary.label}",
            "",
            f"{sentence(summary)} Here: {said}.",
            "",
            markdown([summary]),
        ]
    )
