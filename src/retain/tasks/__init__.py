"""Tasks, their examples, and the readers that make them."""

from retain.tasks.conversation import user_text
from retain.tasks.example import Example
from retain.tasks.task import Task

__all__ = ["Example", "Task", "user_text"]
