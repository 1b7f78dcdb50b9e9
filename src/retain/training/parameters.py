"""The parameters that a phase trains: released, taken and given back."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from retain.errors import RetainError
from retain.training.phase import Phase


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
