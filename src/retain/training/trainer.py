"""Everything that retain overrides in transformers' Trainer. It knows phases, and no method.

Trainer's own methods with an underscore may change with any release of transformers: whatever
depends on them stands in this module, and pyproject.toml bounds the version.
"""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback

from retain.backbone import Backbone, Batch
from retain.backbone.backbone import IGNORED
from retain.errors import RetainError
from retain.runs.checkpoints import last_checkpoint, saving, step_of
from retain.system import processes
from retain.system.progress import Progress
from retain.training.parameters import trained_tensors
from retain.training.phase import UNITS, Phase, Unit

NAMED = 3
"""How many of a batch's examples an error names."""


class PhaseModule(nn.Module):
    """Model and loss as one module for Trainer; its state is what the phase trains."""

    def __init__(self, model: nn.Module, phase: Phase) -> None:
        super().__init__()
        self.model = model
        self._loss = phase.loss

    def forward(self, **batch: Tensor) -> dict[str, Tensor]:
        """Computes the phase's named loss parts of a batch."""
        return self._loss(batch)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Returns the trainable parameters alone: a checkpoint holds what the phase trains."""
        return trained_tensors(self.model)

    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        """Restores the trainable parameters."""
        result = self.model.load_state_dict(state_dict, strict=False)
        result.missing_keys.clear()  # all that the phase does not train
        return result


class PhaseTrainer(Trainer):
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
        """Builds the optimizer over the phase's parameter groups, each with its own rate."""
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
        sizes = processes.gather(own)
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
        """Sums the weighted loss parts of a micro-batch, and refuses one that is not finite."""
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
            + learn_anew(Path(str(self.args.output_dir)), "a lower learning_rate")
        )

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the mean of each loss part since the last log."""
        if "loss" in logs:
            seen = processes.gather([(k, x) for k, own in self._seen.items() for x in own])
            means = {name: fmean(x for key, x in seen if key == name) for name in self._seen}
            logs = {**logs, **{f"loss_{name}": mean for name, mean in means.items()}}
            self._seen = {}
        super().log(logs, *args, **kwargs)


def _size(batch: Batch, unit: Unit) -> int:
    if unit == "answers":
        return int((batch["labels"] != IGNORED).sum())
    return len(batch["labels"]) if unit == "rows" else 1


class Report(TrainerCallback):
    """Reports the loss parts of each logged step."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Reports a step that has loss parts."""
        parts = {k.removeprefix("loss_"): v for k, v in logs.items() if k.startswith("loss_")}
        if parts:
            self.progress.update(state.global_step, parts)


class Intervals(TrainerCallback):
    """Saves and logs as often as the settings say now; a checkpoint has those it was made under."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Replaces the checkpoint's intervals by the current settings'."""
        state.save_steps, state.logging_steps = args.save_steps, args.logging_steps


class Stop(TrainerCallback):
    """Saves and ends after the step in which the user asks for it."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Saves and stops training where the user asked for it."""
        if any(processes.gather([self.progress.stopping])):
            control.should_save = control.should_training_stop = True


class NoLastCheckpoint(TrainerCallback):
    """The phase's result comes in its place, and Trainer would resume it with one step too many."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Cancels the save of the last step."""
        if state.global_step >= state.max_steps:
            control.should_save = False


def learn_anew(folder: Path, settings: str) -> str:
    """How the task whose phase has this folder is learned with other settings, and no task before.

    Args:
        folder: of the phase's checkpoints.
        settings: in words.
    """
    return f"delete {folder.parents[1]} and learn the task anew with {settings} in its 'training'"
