"""Continual learning for language models: one task after another, without forgetting."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retain.errors import RetainError
    from retain.experiment.read_tasks import load_stream
    from retain.learner.learned_model import Answer
    from retain.learner.learner import Learner
    from retain.methods import Method, list_methods
    from retain.tasks import Example, Task
    from retain.training.phase import Phase

    __version__: str

__all__ = [
    "Answer",
    "Example",
    "Learner",
    "Method",
    "Phase",
    "RetainError",
    "Task",
    "__version__",
    "list_methods",
    "load_stream",
]

_HOMES = {
    "Answer": "learner.learned_model",
    "Example": "tasks",
    "Learner": "learner.learner",
    "Method": "methods",
    "Phase": "training.phase",
    "RetainError": "errors",
    "Task": "tasks",
    "list_methods": "methods",
    "load_stream": "experiment.read_tasks",
}


if not TYPE_CHECKING:  # a type checker has the names above, and reports any other

    def __getattr__(name: str) -> Any:
        """Imports a public name when it is first used: torch and transformers take seconds."""
        if name == "__version__":
            from importlib.metadata import version

            return version("retain")
        if name not in _HOMES:
            raise AttributeError(f"module 'retain' has no attribute '{name}'")
        from importlib import import_module

        return getattr(import_module(f"retain.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """Returns the public names; submodules that happen to be imported are not among them."""
    return sorted(__all__)
