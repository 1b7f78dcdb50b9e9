"""Tasks and their readers."""

from retain.tasks.example import Example
from retain.tasks.task import Task

__all__ = ["Example", "Task"]
