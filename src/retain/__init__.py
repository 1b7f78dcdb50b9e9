"""Continual learning for language models: one task after another, without forgetting."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retain.errors import RetainError
    from retain.experiment.stream import load_stream
    from retain.learner import Learner
    from retain.methods import list_methods
    from retain.tasks import Task

__all__ = ["Learner", "RetainError", "Task", "list_methods", "load_stream"]

_HOMES = {
    "Learner": "learner",
    "RetainError": "errors",
    "Task": "tasks",
    "list_methods": "methods",
    "load_stream": "experiment.stream",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used: torch and transformers take seconds."""
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module 'retain' has no attribute '{name}'")
    return getattr(import_module(f"retain.{_HOMES[name]}"), name)
