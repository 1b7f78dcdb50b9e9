"""One optimisation on transformers' Trainer. It knows phases, and no method."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Literal, NoReturn, Self

import torch
import transformers
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    field_validator,
    model_validator,
)
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments

from retain.backbone import Backbone, Batch, memory_advice
from retain.backbone.backbone import IGNORED
from retain.errors import RetainError, StoppedError
from retain.runs.checkpoints import keep_only, last_checkpoint, saving, step_of
from retain.system import processes
from retain.system.files import writing
from retain.system.progress import Progress
from retain.training.batches import Batches
from retain.training.phase import MOST, UNITS, Amount, Count, Phase, Unit
from retain.training.trackers import PROJECT, TrackedPhase, Tracker, tracking

POLYNOMIAL_END = 1e-7
"""The rate at which transformers' polynomial schedule ends."""
NAMED = 3
"""How many of a batch's examples an error names."""


class TrainingConfig(BaseModel):
    """How a task is trained: names and meanings are those of transformers.TrainingArguments."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    max_steps: int = -1  # −1 leaves it to num_train_epochs
    num_train_epochs: Amount = 3.0
    per_device_train_batch_size: Count = 8
    gradient_accumulation_steps: Annotated[int, Field(gt=0, le=10**4)] = 1  # all read at once
    learning_rate: Amount = 1e-3
    lr_scheduler_type: Literal[
        "constant", "constant_with_warmup", "linear", "cosine", "polynomial"
    ] = "linear"
    warmup_steps: NonNegativeInt = 0
    weight_decay: Annotated[float, Field(ge=0, le=MOST)] = 0.0
    max_grad_norm: NonNegativeFloat = 1.0
    optim: Literal["adamw_torch", "adafactor", "sgd"] = "adamw_torch"
    bf16: bool = False
    gradient_checkpointing: bool = False
    torch_compile: bool = False
    save_steps: Count = 100
    logging_steps: Count = 1
    report_to: list[Tracker] = []

    @field_validator("report_to", mode="before")
    @classmethod
    def _trackers(cls, value: Any) -> Any:
        if isinstance(value, str):
            return [] if value == "none" else [value]
        return value

    @field_validator("max_steps")
    @classmethod
    def _allowed(cls, value: int) -> int:
        if value != -1 and value < 1:
            raise ValueError("Input should be at least 1, or -1 to leave it to num_train_epochs")
        return value

    @model_validator(mode="after")
    def _falls(self) -> Self:
        if self.lr_scheduler_type == "polynomial" and self.learning_rate <= POLYNOMIAL_END:
            raise ValueError(
                f"learning_rate ({self.learning_rate}) has to be above {POLYNOMIAL_END}, where "
                "lr_scheduler_type: polynomial ends; raise it, or take linear"
            )
        return self


class _PhaseModule(nn.Module):
    """Model and loss as one module for Trainer; its state is what the phase trains."""

    def __init__(self, model: nn.Module, phase: Phase) -> None:
        super().__init__()
        self.model = model
        self._loss = phase.loss

    def forward(self, **batch: Tensor) -> dict[str, Tensor]:
        return self._loss(batch)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        return trained_tensors(self.model)

    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        result = self.model.load_state_dict(state_dict, strict=False)
        result.missing_keys.clear()  # all that the phase does not train
        return result


class _PhaseTrainer(Trainer):
    """Trainer over parameter groups, keeping the means of the loss parts for the log."""

    def __init__(
        self, phase: Phase, backbone: Backbone, data: DataLoader[Batch], **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.phase = phase
        self._backbone = backbone
        self._inputs: list[Batch] = []  # of the step
        self._data = data
        self.model_accepts_loss_kwargs = False  # it divides the loss by the micro-batches
        self._micro_batches = 1  # of the coming step
        self._sizes: dict[Unit, int] = {}  # of all of them
        self._seen: dict[str, list[float]] = {}  # of each part, since the last log

    def get_train_dataloader(self) -> Any:
        """The phase's batches; to Trainer all of them are one epoch."""
        return self.accelerator.prepare(self._data)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        kind, options = self.get_optimizer_cls_and_kwargs(self.args)
        decay, rate = self.args.weight_decay, self.args.learning_rate
        groups = []
        for group in self.phase.groups:
            for decays in (True, False):  # norms, biases and keys do not, as in Trainer
                members = [p for p in group.parameters if (p.ndim > 1) == decays]
                weight_decay = decay if decays else 0.0
                settings = {"lr": rate * group.rate, "weight_decay": weight_decay}
                groups.append({"params": members, **settings})
        self.optimizer = kind([group for group in groups if group["params"]], **options)
        return self.optimizer

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Also measures the micro-batches of the coming step."""
        found, items = super().get_batch_samples(*args, **kwargs)
        own = [{unit: _size(batch, unit) for unit in UNITS} for batch in found]
        sizes = processes.gathered(own)
        self._inputs = []
        self._micro_batches = len(sizes)
        self._sizes = {unit: sum(size[unit] for size in sizes) for unit in UNITS}
        return found, items

    def _weights(self, batch: Batch) -> dict[Unit, float]:
        """Of a micro-batch among those of its step, for a part over each unit; their mean is 1."""
        count = self._micro_batches
        if count == 1:
            return dict.fromkeys(UNITS, 1.0)
        return {unit: count * _size(batch, unit) / self._sizes[unit] for unit in UNITS}

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        self._inputs.append(inputs)
        weights = self._weights(inputs)
        parts = {
            name: weights[self.phase.over.get(name, "answers")] * part
            for name, part in model(**inputs).items()
        }
        for name, value in parts.items():
            number = value.item()
            if not math.isfinite(number):
                self._stop(f"the loss '{name}' is {number}", self.state.global_step + 1)
            self._seen.setdefault(name, []).append(number)
        return torch.stack(list(parts.values())).sum()

    def check_result(self) -> None:
        """Stops where the step that was made left trained parameters that are not finite."""
        tensors = trained_tensors(self.model).values()
        finite = torch.stack([torch.isfinite(tensor).all() for tensor in tensors])
        if not finite.all():  # one look for all of them
            self._stop("trained parameters are no longer finite", self.state.global_step)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self.check_result()
        with saving(Path(str(self.args.output_dir)), self.state.global_step):
            super()._save_checkpoint(*args, **kwargs)

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> float:
        norm: float = super()._get_grad_norm(*args, **kwargs)
        if not math.isfinite(norm):
            self._stop(f"the gradient's norm is {norm}", self.state.global_step + 1)
        return norm

    def _stop(self, what: str, step: int) -> NoReturn:
        """Refuses a step before anything of it is kept; says which, and on what."""
        texts = [text for batch in self._inputs for text in self._backbone.prompts(batch)]
        shown = ", ".join(repr(text[:40]) for text in texts[:NAMED])
        more = f" and {len(texts) - NAMED} more" if len(texts) > NAMED else ""
        last = last_checkpoint(Path(str(self.args.output_dir)))
        good = f"step {step_of(last)}" if last else "the phase's beginning"
        raise RetainError(
            f"phase '{self.phase.name}', step {step}: {what}, on {shown}"
            f"{more}; the last good state is {good}; take a look at these examples, or "
            + _anew(Path(str(self.args.output_dir)), "a lower learning_rate")
        )

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            seen = processes.gathered([(k, x) for k, own in self._seen.items() for x in own])
            means = {name: fmean(x for key, x in seen if key == name) for name in self._seen}
            logs = {**logs, **{f"loss_{name}": mean for name, mean in means.items()}}
            self._seen = {}
        super().log(logs, *args, **kwargs)


def _size(batch: Batch, unit: Unit) -> int:
    if unit == "answers":
        return int((batch["labels"] != IGNORED).sum())
    return len(batch["labels"]) if unit == "rows" else 1


class _Report(TrainerCallback):
    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        parts = {k.removeprefix("loss_"): v for k, v in logs.items() if k.startswith("loss_")}
        if parts:
            self.progress.update(state.global_step, parts)


class _Intervals(TrainerCallback):
    """Saves and logs as often as the settings say now; a checkpoint has those it was made under."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        state.save_steps, state.logging_steps = args.save_steps, args.logging_steps


class _Stop(TrainerCallback):
    """Saves and ends after the step in which the user asks for it."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if any(processes.gathered([self.progress.stopping])):
            control.should_save = control.should_training_stop = True


class _NoLastCheckpoint(TrainerCallback):
    """The phase's result comes in its place, and Trainer would resume it with one step too many."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_save = False


def restore(model: nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    """Gives back what `trained_tensors` took.

    Raises:
        RetainError: when these are not exactly the parameters that the phase trains.
    """
    wanted = trained_tensors(model)
    if {n: t.shape for n, t in tensors.items()} != {n: t.shape for n, t in wanted.items()}:
        raise RetainError(
            f"{source}: unfinished work of another version or configuration; "
            "delete the task's folder to learn it anew"
        )
    model.load_state_dict(tensors, strict=False)


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that the current phase trains, by name."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def release(model: nn.Module, phase: Phase) -> None:
    """Lets exactly the phase's parameters move.

    Raises:
        RuntimeError: when a group holds a parameter that is not part of the model, which neither
            checkpoints nor data parallelism would see.
    """
    model.requires_grad_(False)
    wanted = [p for group in phase.groups for p in group.parameters]
    known = {id(p) for p in model.parameters()}
    if any(id(p) not in known for p in wanted):
        raise RuntimeError(f"phase '{phase.name}': a trained parameter is not part of the model")
    for parameter in wanted:
        parameter.requires_grad_(True)


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
        trainer = _PhaseTrainer(
            phase,
            backbone,
            DataLoader(rows, batch_sampler=order, collate_fn=backbone.collate),
            model=_PhaseModule(backbone.model, phase),
            args=arguments,
            train_dataset=rows,
            callbacks=[_Intervals(), _Report(progress), _Stop(progress), _NoLastCheckpoint()],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        checkpoint = processes.of_first(last_checkpoint(folder))
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


def _anew(folder: Path, settings: str) -> str:
    """How the task whose phase has this folder is learned with other settings, and no task before.

    Args:
        folder: of the phase's checkpoints.
        settings: in words.
    """
    return f"delete {folder.parents[1]} and learn the task anew with {settings} in its 'training'"


def _advice(config: TrainingConfig, folder: Path) -> str:
    """What makes training take less memory."""
    rows = config.per_device_train_batch_size
    if not config.gradient_checkpointing:
        return "go on with --resume --set training.gradient_checkpointing=true"
    if rows == 1:
        return "take a smaller backbone, or lower prompt.max_prompt_tokens"
    micro = -(-rows // 2)
    twice = 2 * config.gradient_accumulation_steps
    return _anew(
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
