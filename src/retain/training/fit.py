"""One optimisation by Trainer, resumed from the checkpoint in its folder if there is one."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from retain.backbone import Backbone, memory_advice
from retain.backbone.precision import SMALLER
from retain.errors import RetainError, StoppedError
from retain.runs.checkpoints import keep_only, last_checkpoint
from retain.system import processes
from retain.system.files import writing
from retain.system.progress import Progress
from retain.training.batches import Batches
from retain.training.config import TrainingConfig, effective
from retain.training.parameters import release
from retain.training.phase import Phase
from retain.training.sharded_trainer import ShardedTrainer, layers_of
from retain.training.trackers import PROJECT, TrackedPhase, tracking
from retain.training.trainer import (
    Intervals,
    NoLastCheckpoint,
    PhaseModule,
    PhaseTrainer,
    PlacedArguments,
    Report,
    StepHooks,
    Stop,
    compiled,
    learn_anew,
)


def batches(config: TrainingConfig, phase: Phase, seed: int) -> Batches:
    """Lays out the batches of a phase, which also gives its number of optimizer steps."""
    return Batches(
        phase,
        config.per_device_train_batch_size,
        config.gradient_accumulation_steps * processes.count(),
        config.num_train_epochs,
        config.max_steps,
        seed,
    )


def check_class(backbone: Backbone, config: TrainingConfig) -> None:
    """Raises RetainError if the backbone's class lacks what the settings ask for."""
    if config.gradient_checkpointing and not backbone.model.supports_gradient_checkpointing:
        kind = type(backbone.model).__name__
        raise RetainError(f"training.gradient_checkpointing: {kind} has none; set it to false")
    if effective(config.shard) == "full" and not layers_of(backbone.model):
        raise RetainError(
            f"training.shard: full: transformers names no layers of {type(backbone.model).__name__}"
            ", which would be gathered one at a time; set it to optimizer"
        )


def fit(
    backbone: Backbone,
    phase: Phase,
    config: TrainingConfig,
    folder: Path,
    seed: int,
    progress: Progress,
    tracked: TrackedPhase,
    callbacks: Sequence[TrainerCallback] = (),
) -> list[dict[str, float]]:
    """Trains the phase's groups on its examples, from the checkpoint in `folder` if there is one.

    Args:
        backbone: the model is trained in place.
        phase: what is trained, on what.
        config: the task's training settings.
        folder: where Trainer keeps its checkpoints, every `save_steps`.
        seed: fixes the order of examples and dropout.
        progress: receives each logged step.
        tracked: the phase's name in trackers.
        callbacks: of the user, for Trainer.

    Returns:
        The log: per logged step its number, loss, `loss_<part>`, gradient norm, learning rate.

    Raises:
        StoppedError: when the user, or a callback, ends training before the last step.
        RetainError: when memory does not suffice, a loss is not finite, or all steps are warmup of
            the polynomial schedule.
    """
    release(backbone.model, phase)
    layout = batches(config, phase, seed)
    try:
        config.refuse_all_warmup(layout.steps)
    except ValueError as error:
        raise RetainError(f"phase '{phase.name}': {error}") from None
    if config.gradient_checkpointing:
        backbone.model.activation_checkpointing_enable({"use_reentrant": False})
        # That makes what the embedding gives a leaf, and some classes (GIT) change it in place.
        copied = backbone.embedding.register_forward_hook(lambda *called: called[-1].clone())
    options = config.model_dump(
        exclude={
            "max_steps",
            "bf16",
            "warmup_steps",
            "warmup_ratio",
            "gradient_checkpointing",
            "torch_compile",
            "shard",
            "extra",
        }
    )
    arguments = PlacedArguments(
        output_dir=str(folder),
        max_steps=layout.steps,
        warmup_steps=config.warmup(layout.steps),
        seed=seed,
        save_strategy="steps",
        bf16=config.autocasts,
        run_name=tracked.run_name,
        project=PROJECT,
        disable_tqdm=True,
        logging_nan_inf_filter=False,  # reads each loss; PhaseTrainer refuses them once a step
        remove_unused_columns=False,
        log_level="error",
        use_cpu=backbone.device.type == "cpu",
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,  # frozen blocks: all have the same, and they are many
        ddp_backend=processes.backend(backbone.device.type == "cpu"),
        **options,
        **config.extra,
    )
    rows: Any = [*phase.data, *(phase.replay.rows if phase.replay else ())]
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with _quiet():
        shard = effective(config.shard)
        kind = PhaseTrainer if shard == "none" else partial(ShardedTrainer, shard)
        trainer = kind(
            phase=phase,
            backbone=backbone,
            data=DataLoader(rows, batch_sampler=layout, collate_fn=backbone.collate),
            model=PhaseModule(backbone.model, phase),
            args=arguments,
            train_dataset=rows,
            # The last one has the last word on whether a step is saved.
            callbacks=[
                StepHooks(phase),
                Intervals(),
                Report(progress),
                *callbacks,
                Stop(progress),
                NoLastCheckpoint(),
            ],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        checkpoint = processes.from_first(lambda: last_checkpoint(folder))
        keep_only(folder, checkpoint)
        where = f"training at {config.per_device_train_batch_size} rows a batch"
        with (
            memory_advice(where, _advice(config, folder)),
            tracking(trainer, tracked),
            compiled(backbone.model, config.torch_compile),
        ):
            trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    if trainer.state.global_step < layout.steps:
        raise StoppedError(f"after step {trainer.state.global_step} of {layout.steps}")
    trainer.check_result()
    if config.gradient_checkpointing:
        backbone.model.activation_checkpointing_disable()
        copied.remove()
    backbone.model.requires_grad_(False).eval()
    # Sorted like the log entries that were read from a checkpoint.
    return [dict(sorted(row.items())) for row in trainer.state.log_history if "loss" in row]


def _advice(config: TrainingConfig, folder: Path) -> str:
    """Returns the advice for training in less memory."""
    rows = config.per_device_train_batch_size
    if not config.gradient_checkpointing:
        return "continue, with --set training.gradient_checkpointing=true added to the command"
    if rows == 1:
        return f"lower prompt.max_prompt_tokens, or take {SMALLER}"
    micro = -(-rows // 2)
    twice = 2 * config.gradient_accumulation_steps
    return learn_anew(
        folder, f"per_device_train_batch_size={micro} and gradient_accumulation_steps={twice}"
    )


@contextmanager
def as_trained(backbone: Backbone, config: TrainingConfig) -> Iterator[None]:
    """Runs a method's forward passes outside of `fit` in the precision of training.

    Raises:
        RetainError: when memory does not suffice; it says what to change.
    """
    lower = max(1, backbone.prompt.max_prompt_tokens // 2)
    advice = f"start again in another --output with prompt.max_prompt_tokens={lower}"
    with (
        memory_advice("the method's own passes before or after training", advice),
        torch.autocast(backbone.device.type, torch.bfloat16, enabled=config.autocasts),
    ):
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences warnings of libraries about settings that are not the user's."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            # accelerate always passes it, and torch has renamed it in 2.13
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")
            warnings.filterwarnings("ignore", "Paged optimizers are not supported on CPU")
            # T5's blocks return a position bias that is a view, and change none in place
            warnings.filterwarnings("ignore", r"FSDP2-wrapped module \(FSDPT5Block\)")
            # torch.compile reads it itself
            warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
            yield
    finally:
        transformers.logging.set_verbosity(level)
