"""What retain overrides in transformers' Trainer. It knows phases, and no method.

Names with an underscore may change with any release of transformers or torch. All that training
uses of them stands here, in `sharded_trainer.py` (what several processes share out) and in
`shard.py`. `PRIVATE` lists those of transformers: a test looks for them, and pyproject.toml bounds
the version.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

from retain.backbone import Backbone, Batch
from retain.backbone.losses import IGNORED
from retain.errors import RetainError
from retain.runs.checkpoints import last_checkpoint, saving, step_of
from retain.system import processes
from retain.system.progress import Progress
from retain.training.parameters import trained_tensors
from retain.training.phase import UNITS, Phase, Unit
from retain.training.shard import divided, own, whole

STATE = "phase_state."
"""Prefix, in a checkpoint, of what a phase's hooks keep."""
NAMED = 3
"""How many of a batch's examples an error names."""
PRIVATE = {Trainer: ("_save_checkpoint", "_get_grad_norm"), TrainingArguments: ("_n_gpu",)}
"""The names with an underscore that this module overrides or sets, by their class."""


class PhaseModule(nn.Module):
    """Model and loss as one module for Trainer; its state is what a checkpoint holds."""

    def __init__(self, model: nn.Module, phase: Phase) -> None:
        super().__init__()
        self.model = model
        self._loss = phase.loss
        self._state = phase.state
        self._device = next(model.parameters()).device
        # All processes have these already. A broadcast would write them to new memory, where they
        # are pages of a file that the processes of a node share.
        self._ddp_params_and_buffers_to_ignore = [
            name for name, parameter in self.named_parameters() if not parameter.requires_grad
        ]

    def forward(self, **batch: Tensor) -> dict[str, Tensor]:
        """Computes the phase's named loss parts of a batch."""
        return self._loss(batch)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Returns what a checkpoint holds: the trainable parameters, and the state of the hooks."""
        state = {f"{STATE}{name}": tensor for name, tensor in self._state.items()}
        return {**trained_tensors(self.model), **state}

    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        """Restores the trainable parameters, and the state of the hooks."""
        trained = {key: t for key, t in state_dict.items() if not key.startswith(STATE)}
        shares = divided(trained, dict(self.model.named_parameters()))
        result = self.model.load_state_dict(shares, strict=False)
        self._state.clear()
        for key in state_dict.keys() - trained.keys():
            self._state[key.removeprefix(STATE)] = state_dict[key].to(self._device)
        result.missing_keys.clear()  # all that the phase does not train
        return result


class PhaseTrainer(Trainer):
    """Trainer over parameter groups, keeping the means of the loss parts for the log."""

    def __init__(
        self, phase: Phase, backbone: Backbone, data: DataLoader[Batch], **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.phase = phase
        # Several processes reduce gradients in buckets; without it they would be in memory twice.
        self.accelerator.ddp_handler.gradient_as_bucket_view = True
        self._backbone = backbone
        self._inputs: list[Batch] = []  # the step's micro-batches so far, for errors
        self._parts: list[dict[str, Tensor]] = []  # their weighted loss parts, not read yet
        self._data = data
        # Trainer then divides the loss by the number of micro-batches.
        self.model_accepts_loss_kwargs = False
        self._sizes: list[dict[Unit, int]] = []  # of the coming step's micro-batches here
        self._all_sizes: list[dict[Unit, int]] = []  # and of those in all processes
        self._losses: dict[str, list[float]] = {}  # each part's values since the last log

    def get_train_dataloader(self) -> Any:
        """Returns the phase's batches; to Trainer all of them are one epoch."""
        return self.accelerator.prepare(self._data)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Builds the optimizer over the phase's parameter groups, each with its own rate."""
        kind, options = self.get_optimizer_cls_and_kwargs(self.args)
        decay, rate = self.args.weight_decay, self.args.learning_rate
        groups = []
        for group in self.phase.groups:
            for decays in (True, False):  # norms, biases and keys do not decay, as in Trainer
                members = [p for p in group.parameters if (p.ndim > 1) == decays]
                weight_decay = decay if decays else 0.0
                settings = {"lr": rate * group.rate, "weight_decay": weight_decay}
                groups.append({"params": members, **settings})
        self.optimizer = self.make_optimizer(kind, [g for g in groups if g["params"]], options)
        return self.optimizer

    def make_optimizer(
        self,
        kind: type[torch.optim.Optimizer],
        groups: list[dict[str, Any]],
        options: dict[str, Any],
    ) -> torch.optim.Optimizer:
        """Builds an optimizer of a class over groups of parameters."""
        return kind(groups, **options)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Also measures the micro-batches of the coming step."""
        batches, items = super().get_batch_samples(*args, **kwargs)
        answers = [(batch["labels"] != IGNORED).sum() for batch in batches]
        counts = torch.stack(answers).tolist() if batches else []  # one read from the device
        self._sizes = [
            {"answers": count, "rows": len(batch["labels"]), "step": 1}
            for count, batch in zip(counts, batches, strict=True)
        ]
        self._all_sizes = processes.gather(self._sizes)
        self._inputs, self._parts = [], []
        return batches, items

    def _weights(self, sizes: dict[Unit, int]) -> dict[Unit, float]:
        """Returns a micro-batch's weight in its step for each unit; the weights' mean is 1."""
        count = len(self._all_sizes)
        if count == 1:
            return dict.fromkeys(UNITS, 1.0)
        totals = {unit: sum(other[unit] for other in self._all_sizes) for unit in UNITS}
        return {unit: count * sizes[unit] / totals[unit] for unit in UNITS}

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Sums the weighted loss parts of a micro-batch, and keeps them for `_get_grad_norm`."""
        weights = self._weights(self._sizes[len(self._inputs)])
        self._inputs.append(inputs)
        parts = {
            name: weights[self.phase.units.get(name, "answers")] * part
            for name, part in model(**inputs).items()
        }
        self._parts.append({name: part.detach() for name, part in parts.items()})
        return torch.stack(list(parts.values())).sum()

    def check_result(self) -> None:
        """Stops when the last step left trained parameters that are not finite."""
        tensors = trained_tensors(self.model).values()
        finite = torch.stack([torch.isfinite(own(tensor)).all() for tensor in tensors])
        # One read from the GPU for all of them; a process may hold a share only.
        if not all(processes.gather([bool(finite.all())])):
            step = self.state.global_step
            self._stop("trained parameters are no longer finite", step, self._inputs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self.check_result()
        with saving(Path(str(self.args.output_dir)), self.state.global_step):
            super()._save_checkpoint(*args, **kwargs)

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> float:
        """Returns the gradient's norm; stops before the step if it or a loss is not finite.

        All of a step's loss parts are read from the device here at once, with the norm.
        """
        norm = torch.as_tensor(whole(super()._get_grad_norm(*args, **kwargs)))
        names = [(i, name) for i, parts in enumerate(self._parts) for name in parts]
        values = [self._parts[i][name].float() for i, name in names]
        *losses, read_norm = torch.stack([*values, norm.to(values[0])]).tolist()
        step = self.state.global_step + 1
        for (i, name), loss in zip(names, losses, strict=True):
            if not math.isfinite(loss):
                self._stop(f"the loss '{name}' is {loss}", step, self._inputs[i : i + 1])
            self._losses.setdefault(name, []).append(loss)
        if not math.isfinite(read_norm):
            self._stop(f"the gradient's norm is {read_norm}", step, self._inputs)
        return float(read_norm)

    def _stop(self, what: str, step: int, batches: list[Batch]) -> NoReturn:
        """Raises the error that names a step and its examples, before anything of it is kept."""
        texts = [text for batch in batches for text in self._backbone.prompts(batch)]
        shown = ", ".join(repr(text[:40]) for text in texts[:NAMED])
        more = f" and {len(texts) - NAMED} more" if len(texts) > NAMED else ""
        last = last_checkpoint(Path(str(self.args.output_dir)))
        good = f"step {step_of(last)}" if last else "the phase's beginning"
        raise RetainError(
            f"phase '{self.phase.name}', step {step}: {what}, on {shown}"
            f"{more}; the last good state is {good}; take a look at these examples, or "
            + learn_anew(Path(str(self.args.output_dir)), "a lower learning_rate")
        )

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the mean of each loss part since the last log."""
        if "loss" in logs:
            seen = processes.gather([(k, x) for k, values in self._losses.items() for x in values])
            means = {name: fmean(x for key, x in seen if key == name) for name in self._losses}
            logs = {**logs, **{f"loss_{name}": mean for name, mean in means.items()}}
            self._losses = {}
        super().log(logs, *args, **kwargs)


class Report(TrainerCallback):
    """Reports the loss parts of each logged step."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Reports a step that has loss parts."""
        parts = {k.removeprefix("loss_"): v for k, v in logs.items() if k.startswith("loss_")}
        if parts:
            self.progress.update(state.global_step, parts)


class StepHooks(TrainerCallback):
    """Calls a phase's own code around the optimizer's step."""

    def __init__(self, phase: Phase) -> None:
        self.phase = phase

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Calls `Phase.before_step`."""
        if self.phase.before_step is not None:
            self.phase.before_step()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Calls `Phase.after_step`."""
        if self.phase.after_step is not None:
            self.phase.after_step()


class Intervals(TrainerCallback):
    """Saves and logs at the intervals of the current settings, and not of the checkpoint's."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Replaces the checkpoint's intervals by the current settings'."""
        state.save_steps, state.logging_steps = args.save_steps, args.logging_steps


class Stop(TrainerCallback):
    """Saves and ends training after the step in which the user asks for it."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Saves and stops training where the user asked for it."""
        if any(processes.gather([self.progress.stopping])):
            control.should_save = control.should_training_stop = True


class NoLastCheckpoint(TrainerCallback):
    """Skips the final checkpoint: the phase's result replaces it.

    Trainer would make one step too many when it resumes from it.
    """

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Cancels the save of the last step."""
        if state.global_step >= state.max_steps:
            control.should_save = False


def learn_anew(folder: Path, settings: str) -> str:
    """Returns the advice for learning one task again, with other settings, and none before it.

    Args:
        folder: of the checkpoints of one of the task's phases.
        settings: the other settings in words.
    """
    return f"delete {folder.parents[1]} and learn the task anew with {settings} in its 'training'"


class PlacedArguments(TrainingArguments):
    """Trainer's arguments for a model that is on its device."""

    @property
    def place_model_on_device(self) -> bool:
        """Whether Trainer moves the model: to "cpu:0" it would copy the weights on "cpu"."""
        return False

    def __post_init__(self) -> None:
        """Keeps Trainer from DataParallel, and accelerate from moving a model on "cpu" to "cpu:0".

        Several GPUs are for accelerate launch.
        """
        super().__post_init__()
        self._n_gpu = min(self.n_gpu, 1)
        if self.device.type == "cpu" and self.distributed_state is not None:
            self.distributed_state.device = torch.device("cpu")


@contextmanager
def compiled(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Compiles the model's forward and backward with torch.compile in here, if wanted.

    Each phase has its own number of blocks, for which torch would compile anew eight times and then
    run eagerly without a warning; so no phase inherits graphs.

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
        model._compiled_call_impl = None  # nn.Module has no method that undoes compile()


def check_callbacks(callbacks: Iterable[Any] | None) -> tuple[TrainerCallback, ...]:
    """Returns a user's callbacks for Trainer.

    Raises:
        RetainError: when one is no instance of `transformers.TrainerCallback`, or waits for
            evaluations during training, which there are none of.
    """
    if callbacks is None:
        return ()
    if not isinstance(callbacks, Iterable):
        raise RetainError(f"callbacks: {callbacks!r:.80} is no list; give [callback]")
    checked = tuple(callbacks)
    for callback in checked:
        if not isinstance(callback, TrainerCallback):
            kind = f"the class {callback.__name__}" if isinstance(callback, type) else callback
            raise RetainError(
                f"callbacks: {kind!r:.80} is no transformers.TrainerCallback; give an instance"
            )
        if isinstance(callback, EarlyStoppingCallback):
            raise RetainError(
                f"callbacks: {type(callback).__name__} waits for Trainer's evaluations, which "
                "retain does not run; leave it out"
            )
    return checked
