"""The parameters that a phase trains: unfrozen, read and restored."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from retain.errors import RetainError
from retain.training.phase import Phase


def restore(model: nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    """Puts tensors that `trained_tensors` returned back into the model.

    Raises:
        RetainError: when these are not exactly the parameters that the phase trains.
    """
    trained = trained_tensors(model)
    if {n: t.shape for n, t in tensors.items()} != {n: t.shape for n, t in trained.items()}:
        raise RetainError(
            f"{source}: does not hold the parameters that this phase trains; "
            "delete the task's folder to learn it again"
        )
    model.load_state_dict(tensors, strict=False)


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Returns the parameters that the current phase trains, by name."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def release(model: nn.Module, phase: Phase) -> None:
    """Makes exactly the phase's parameters trainable.

    Raises:
        RuntimeError: when a group holds a parameter that is not part of the model, which neither
            checkpoints nor data parallelism would see.
    """
    model.requires_grad_(False)
    trainable = [p for group in phase.groups for p in group.parameters]
    in_model = {id(p) for p in model.parameters()}
    if any(id(p) not in in_model for p in trainable):
        raise RuntimeError(f"phase '{phase.name}': a trained parameter is not part of the model")
    for parameter in trainable:
        parameter.requires_grad_(True)
