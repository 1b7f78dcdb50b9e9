"""Experiment trackers by Trainer's own `report_to`, with one tracker run per phase of a task."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from transformers import integrations

from retain.errors import RetainError

if TYPE_CHECKING:
    from transformers import Trainer

Tracker = Literal["tensorboard", "trackio", "wandb", "mlflow"]
PROJECT = "retain"
"""Trackio's project; wandb and MLflow read WANDB_PROJECT and MLFLOW_EXPERIMENT_NAME instead."""
TENSORBOARD = "tensorboard"
"""The folder in a run for TensorBoard, unless TENSORBOARD_LOGGING_DIR names another."""


@dataclass(frozen=True)
class TrackedPhase:
    """The name of a phase in trackers.

    Attributes:
        run: the run's folder.
        name: the folder names of task and phase, such as `01-tickets/2-learn`; they sort in the
            order of training.
    """

    run: Path
    name: str

    @property
    def run_name(self) -> str:
        """The name of the tracker run."""
        return f"{self.run.resolve().name}/{self.name}"


def require_installed(trackers: Iterable[Tracker]) -> None:
    """Raises a RetainError if a tracker is not installed."""
    installed = {
        "tensorboard": integrations.is_tensorboard_available,
        "trackio": integrations.is_trackio_available,
        "wandb": integrations.is_wandb_available,
        "mlflow": integrations.is_mlflow_available,
    }
    for name in trackers:
        if not installed[name]():
            raise RetainError(
                f"training.report_to: {name} is not installed; install it (pip install {name}), or "
                "remove it: training.jsonl has the same log"
            )


@contextmanager
def tracking(trainer: Trainer, phase: TrackedPhase) -> Iterator[None]:
    """Opens a run for a phase in each of the trainer's trackers, and ends it."""
    from transformers.integrations import TensorBoardCallback, WandbCallback

    callbacks = trainer.callback_handler.callbacks
    for callback in callbacks:
        if isinstance(callback, TensorBoardCallback):
            # Trainer's default lies among the checkpoints, which are deleted after the task.
            chosen = callback.logging_dir and Path(callback.logging_dir) / phase.run_name
            callback.logging_dir = str(chosen or phase.run / TENSORBOARD / phase.name)
    if not any(isinstance(callback, WandbCallback) for callback in callbacks):
        yield
        return
    import wandb

    users_run = wandb.run  # one that is open already is the user's, and gets all phases
    try:
        yield
    finally:
        if users_run is None:
            wandb.finish()  # else the next phase would log to it, with steps from 1 again
