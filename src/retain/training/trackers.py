"""Experiment trackers, through Trainer's own `report_to`: one tracker run per phase of a task."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transformers import Trainer, integrations
from transformers.integrations import TensorBoardCallback, WandbCallback

from retain.errors import RetainError

Tracker = Literal["tensorboard", "trackio", "wandb", "mlflow"]
PROJECT = "retain"
"""Trackio's; wandb and MLflow take theirs from WANDB_PROJECT and MLFLOW_EXPERIMENT_NAME."""
TENSORBOARD = "tensorboard"
"""The folder in a run for TensorBoard, unless TENSORBOARD_LOGGING_DIR names another."""


@dataclass(frozen=True)
class TrackedPhase:
    """What trackers call a phase.

    Attributes:
        run: the run's folder.
        name: of task and phase, such as `01-tickets/2-learn`: they sort as they were learned.
    """

    run: Path
    name: str

    @property
    def run_name(self) -> str:
        """The tracker run's."""
        return f"{self.run.resolve().name}/{self.name}"


def refuse_missing(trackers: Iterable[Tracker]) -> None:
    """Raises RetainError for a tracker that is not installed, before anything is trained."""
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
                "leave it out: training.jsonl has the same log"
            )


@contextmanager
def tracking(trainer: Trainer, phase: TrackedPhase) -> Iterator[None]:
    """Gives a phase a run of its own in each of the trainer's trackers, and ends it."""
    callbacks = trainer.callback_handler.callbacks
    for callback in callbacks:
        if isinstance(callback, TensorBoardCallback):
            # Trainer's own place is among the checkpoints, which go when the task ends.
            given = callback.logging_dir and Path(callback.logging_dir) / phase.run_name
            callback.logging_dir = str(given or phase.run / TENSORBOARD / phase.name)
    if not any(isinstance(callback, WandbCallback) for callback in callbacks):
        yield
        return
    import wandb

    users = wandb.run  # one that is open already is the user's, and takes in all phases
    try:
        yield
    finally:
        if users is None:
            wandb.finish()  # or the next phase would go on in it, and its steps begin again
