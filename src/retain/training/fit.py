"""fit(phase): one optimisation, from the checkpoint in its folder if there is one."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from torch._dynamo.exc import TorchDynamoException
from torch.utils.data import DataLoader
from transformers import TrainingArguments

from retain.backbone import Backbone, memory_advice
from retain.errors import RetainError, StoppedError
from retain.runs.checkpoints import keep_only, last_checkpoint
from retain.system import processes
from retain.system.files import writing
from retain.system.progress import Progress
from retain.training.batches import Batches
from retain.training.config import TrainingConfig
from retain.training.parameters import release
from retain.training.phase import Phase
from retain.training.trackers import PROJECT, TrackedPhase, tracking
from retain.training.trainer import (
    Intervals,
    NoLastCheckpoint,
    PhaseModule,
    PhaseTrainer,
    Report,
    Stop,
    learn_anew,
)


def batches(config: TrainingConfig, phase: Phase, seed: int) -> Batches:
    """The rows of each batch of a phase, and with them its number of optimizer steps."""
    return Batches(
        phase,
        config.per_device_train_batch_size,
        config.gradient_accumulation_steps * processes.count(),
        config.num_train_epochs,
        config.max_steps,
        seed,
    )


def fit(
    backbone: Backbone,
    phase: Phase,
    config: TrainingConfig,
    folder: Path,
    seed: int,
    progress: Progress,
    tracked: TrackedPhase,
) -> list[dict[str, float]]:
    """Trains the phase's groups on its rows, from the checkpoint in `folder` if there is one.

    Args:
        backbone: the model is trained in place.
        phase: what is trained, on what.
        config: the task's training settings.
        folder: where Trainer keeps its checkpoints, every `save_steps`.
        seed: of the order of rows and of dropout.
        progress: is told of each logged step.
        tracked: what trackers call the phase.

    Returns:
        The log: per logged step its number, loss, `loss_<part>`, gradient norm, learning rate.
    """
    release(backbone.model, phase)
    order = batches(config, phase, seed)
    if config.gradient_checkpointing:
        backbone.model.activation_checkpointing_enable({"use_reentrant": False})
    options = config.model_dump(exclude={"max_steps", "gradient_checkpointing", "torch_compile"})
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=order.steps,
        seed=seed,
        save_strategy="steps",
        run_name=tracked.run_name,
        project=PROJECT,
        disable_tqdm=True,
        remove_unused_columns=False,
        log_level="error",
        use_cpu=backbone.device.type == "cpu",
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,  # frozen blocks: all have the same, and they are many
        ddp_backend=processes.backend(backbone.device.type == "cpu"),
        **options,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # more than one GPU is for accelerate launch
    rows: Any = [*phase.data, *(phase.replay.rows if phase.replay else ())]
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with _quiet():
        trainer = PhaseTrainer(
            phase,
            backbone,
            DataLoader(rows, batch_sampler=order, collate_fn=backbone.collate),
            model=PhaseModule(backbone.model, phase),
            args=arguments,
            train_dataset=rows,
            callbacks=[Intervals(), Report(progress), Stop(progress), NoLastCheckpoint()],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        checkpoint = processes.broadcast(last_checkpoint(folder))
        keep_only(folder, checkpoint)
        where = f"training at {config.per_device_train_batch_size} rows a batch"
        with (
            memory_advice(where, _advice(config, folder)),
            tracking(trainer, tracked),
            _compiled(backbone.model, config.torch_compile),
        ):
            trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    if trainer.state.global_step < order.steps:
        raise StoppedError(f"after step {trainer.state.global_step} of {order.steps}")
    trainer.check_result()
    if config.gradient_checkpointing:
        backbone.model.activation_checkpointing_disable()
    backbone.model.requires_grad_(False).eval()
    # Sorted, as the rows that were read from a checkpoint are.
    return [dict(sorted(row.items())) for row in trainer.state.log_history if "loss" in row]


def _advice(config: TrainingConfig, folder: Path) -> str:
    """What makes training take less memory."""
    rows = config.per_device_train_batch_size
    if not config.gradient_checkpointing:
        return "go on with --resume --set training.gradient_checkpointing=true"
    if rows == 1:
        return "take a smaller backbone, or lower prompt.max_prompt_tokens"
    micro = -(-rows // 2)
    twice = 2 * config.gradient_accumulation_steps
    return learn_anew(
        folder, f"per_device_train_batch_size={micro} and gradient_accumulation_steps={twice}"
    )


@contextmanager
def _compiled(model: nn.Module, wanted: bool) -> Iterator[None]:
    """The model's forward and backward go through torch.compile in here, if wanted.

    Each phase has its own number of blocks, for which torch would compile anew eight times and then
    run eagerly without a word; so no phase inherits graphs.

    Raises:
        RetainError: when torch cannot compile it, for want of a C++ compiler, say.
    """
    if not wanted:
        yield
        return
    torch.compiler.reset()
    model.compile()
    try:
        yield
    except TorchDynamoException as error:
        what = " ".join(str(error).strip().splitlines()[:2])
        raise RetainError(
            f"training.torch_compile: torch cannot compile this model here ({what}); "
            "go on with --resume --set training.torch_compile=false"
        ) from error
    finally:
        model._compiled_call_impl = None  # as before: nn.Module has no word for it


@contextmanager
def as_trained(backbone: Backbone, config: TrainingConfig) -> Iterator[None]:
    """A method's own forward passes, outside of `fit`, in the precision of those in it.

    Raises:
        RetainError: when memory does not suffice; it says what to change.
    """
    lower = max(1, backbone.prompt.max_prompt_tokens // 2)
    advice = f"start again in another --output with prompt.max_prompt_tokens={lower}"
    with (
        memory_advice("between phases", advice),
        torch.autocast(backbone.device.type, torch.bfloat16, enabled=config.bf16),
    ):
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the libraries' own notes, which speak of things the user did not set."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            # accelerate always gives it, and torch has another name for it since 2.13
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")
            # torch.compile looks at it itself
            warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
            yield
    finally:
        transformers.logging.set_verbosity(level)
