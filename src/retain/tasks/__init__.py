"""Tasks, their examples, and the readers that make them."""

from retain.tasks.example import Example
from retain.tasks.task import Task

__all__ = ["Example", "Task"]
