"""Multi-task learning: all tasks at once. The bound that has nothing to forget."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from retain.backbone import Backbone, Features
from retain.layers.pooled_linear import ADAPTER
from retain.methods.base import Phase
from retain.methods.memory import EXAMPLES
from retain.methods.sequential import Sequential, SequentialConfig
from retain.methods.weights import MODEL
from retain.store import read_jsonl, write_jsonl
from retain.tasks import Task
from retain.tasks.readers import parse_row


class MultiTask(Sequential):
    """Cross-entropy on the examples of all tasks so far, shuffled together.

    It waits for the stream's last task, and then learns all of them from the backbone as it was: a
    fixed number of steps counts once for each. A task that comes later is learned together with the
    old ones' examples again, from the weights as they are.
    """

    Config = SequentialConfig
    idea = "all tasks at once, on everybody's examples, when the stream's last has come: a bound"
    stores = "all of its training examples; the newest weights"
    needs_old_data = True
    waits = True

    def __init__(self, backbone: Backbone, config: SequentialConfig) -> None:
        super().__init__(backbone, config)
        self._kept: list[Features] = []
        self._tasks = 0

    def phases(self, task: Task, folder: Path) -> Iterator[Phase]:
        """One phase on the examples of all tasks, or none while more tasks are to come."""
        if self.waiting:
            return
        for phase in super().phases(task, folder):
            yield replace(phase, data=[*self._kept, *phase.data], tasks=self._tasks + 1)

    def finish(self, task: Task, folder: Path) -> None:
        """Keeps the task's examples."""
        write_jsonl(folder / EXAMPLES, [example.as_row() for example in task.train])
        self._kept += self.encoded(task)
        self._tasks += 1

    def save(self, folder: Path) -> None:
        """Writes the weights, if they have learned."""
        if not self.waiting:
            super().save(folder)

    def load(self, folder: Path) -> None:
        """Adds a task's examples, and takes over the weights that learned with it."""
        self.waiting = not any((folder / name).exists() for name in (MODEL, ADAPTER))
        if not self.waiting:
            super().load(folder)
        path = folder / EXAMPLES
        examples = [parse_row(row, str(path)) for row in read_jsonl(path)]
        self._kept += [self.backbone.encode(example) for example in examples]
        self._tasks += 1
