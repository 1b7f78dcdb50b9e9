"""Multi-task learning: all tasks trained together. A bound, as nothing can be forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from retain.backbone import Backbone
from retain.methods.base import Footprint, Phase, TaskContext, bytes_of
from retain.methods.shared.memory import MEMORY, read_examples
from retain.methods.shared.sequential import Sequential, SequentialConfig
from retain.system.files import write_jsonl
from retain.tasks import Example, Task


class MultiTask(Sequential):
    """Cross-entropy on the examples of all tasks so far, shuffled together.

    The method waits for the stream's last task, then trains the unchanged backbone on all tasks;
    a fixed number of steps counts per task. If another task follows later, the current weights are
    trained on the examples of all tasks again.
    """

    Config = SequentialConfig
    traits = replace(
        Sequential.traits,
        idea="all tasks at once, on all examples, when the stream's last task has come: a bound",
        stores="all of its training examples; the newest weights",
        needs_old_data=True,
        waits=True,
    )
    only_calls = True

    def __init__(self, backbone: Backbone, config: SequentialConfig) -> None:
        super().__init__(backbone, config)
        self._kept: list[list[Example]] = []  # training examples of each older task

    def phases(self, task: Task, context: TaskContext) -> Iterator[Phase]:
        """Yields one phase on the examples of all tasks, or none while more tasks are to come."""
        if self.waiting:
            return
        old = [self.backbone.encode(example) for examples in self._kept for example in examples]
        for phase in super().phases(task, context):
            yield replace(phase, data=[*old, *phase.data], tasks=len(self._kept) + 1)

    def finish(self, task: Task, context: TaskContext) -> None:
        """Writes and keeps the task's training examples."""
        write_jsonl(context.folder / MEMORY, [example.as_row() for example in task.train])
        self._kept.append(list(task.train))

    def save(self, context: TaskContext) -> None:
        """Writes the weights, if they were trained."""
        if not self.waiting:
            super().save(context)

    def footprint(self, task: Task, batch_size: int) -> Footprint:
        """Adds all of the task's training examples to the estimate."""
        return super().footprint(task, batch_size) + Footprint(kept=bytes_of(task.train))

    def load(self, context: TaskContext) -> None:
        """Restores the task's examples, and the weights if its folder still has them."""
        super().load(context)
        self.waiting = not self.weights.saved(context.folder)
        self._kept.append(read_examples(context.folder))
