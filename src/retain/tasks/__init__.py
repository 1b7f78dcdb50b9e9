"""Tasks and their readers."""

from retain.tasks.task import Example, Task

__all__ = ["Example", "Task"]
