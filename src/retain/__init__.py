"""Continual learning for language models: one task after another, without forgetting."""

from retain.errors import RetainError
from retain.learner import Learner
from retain.methods import list_methods
from retain.stream import load_stream
from retain.tasks import Task

__all__ = ["Learner", "RetainError", "Task", "list_methods", "load_stream"]
