"""A run's model, asked: answers, routing, and scores of the learned tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from retain.backbone import Backbone
from retain.errors import RetainError
from retain.evaluation.answers import Evaluation, answer, evaluate
from retain.evaluation.streaming import Reply
from retain.experiment.config import ExperimentConfig
from retain.methods.base import Method
from retain.runs import results
from retain.runs.directory import RunDirectory
from retain.system.progress import Progress
from retain.tasks import Example, Task


@dataclass(frozen=True)
class Answer:
    """A generated answer, with the weights over blocks by name where the method routes."""

    prompt: str
    output: str
    routing: dict[str, float] | None


class LearnedModel:
    """What `Learner` is once it has learned: it answers, routes and scores, and writes nothing.

    Attributes:
        run: the run's folder.
        experiment: its settings.
        backbone: the `Backbone`: prompts to tokens, losses, generation.
        method: the `Method`, with all that it has learned.
        tasks: the learned tasks in order, without their training examples.
        progress: receives what happens.
    """

    run: RunDirectory
    experiment: ExperimentConfig
    backbone: Backbone
    method: Method
    tasks: list[Task]
    progress: Progress
    _interrupted: bool

    def _refuse_interrupted(self) -> None:
        if self._interrupted:
            raise RetainError(
                f"{self.run.path}: this learner was interrupted and its model is half trained; "
                "continue with Learner.load"
            )

    def refuse_unready(self) -> None:
        """Raises RetainError when there is no whole model to answer with."""
        self._refuse_interrupted()
        if not self.tasks:
            raise RetainError(
                f"{self.run.path}: nothing learned yet; go on with retain run --resume, or learn a "
                "task"
            )
        if self.method.waiting:
            raise RetainError(
                f"{self.run.path}: its tasks are learned together, when the last has come; go on "
                "with retain run --resume"
            )

    def _evaluate(self, task: Task, limit: int | None = None) -> Evaluation:
        config = self.experiment.evaluation
        if limit is not None:
            config = config.model_copy(update={"limit": limit})
        return evaluate(self.backbone, self.method, task, config, self.progress)

    def evaluate(self, limit: int | None = None) -> dict[str, float]:
        """Answers every learned task's test examples again, and scores them; writes nothing."""
        self.refuse_unready()
        return {task.name: self._evaluate(task, limit).score for task in self.tasks}

    @property
    def scores(self) -> dict[str, Any]:
        """What scores.json holds: task names, score matrix, AP, F.Ra, FWT, BWT."""
        return results.scores(self.run).model_dump()

    @property
    def model(self) -> PreTrainedModel:
        """The transformers model with the method's layers, which use the weights of `route`."""
        return self.backbone.model

    def route(
        self, prompts: Sequence[str | Example], task: str | None = None
    ) -> list[dict[str, float]] | None:
        """Routes prompts, so that a loop of one's own can use `model` on them.

        The weights over blocks stay set until the next call that routes or answers. A forward or
        generation must have one row a prompt, in this order.

        Args:
            prompts: texts, or examples for whole conversations.
            task: its name, for methods that need it.

        Returns:
            Per prompt the weights over blocks, by the names of their tasks; None for a method
            that does not route.

        Raises:
            RetainError: when nothing is learned yet, or the method writes its prompts into the
                input, where tokens of one's own would lack them.
        """
        self.refuse_unready()
        if self.backbone.virtual_tokens:
            raise RetainError(
                f"Learner.route: method '{self.experiment.method['name']}' adds prompts to the "
                "input, which tokens of your own would lack; use answers"
            )
        if not prompts:
            raise RetainError("Learner.route: no prompts; give it at least one")
        rows = [self.backbone.encode(_example(p), with_answer=False) for p in prompts]
        batch = self.backbone.collate(rows)
        with torch.no_grad():
            self.method.route(batch, task)
            self.backbone.read(batch)  # some methods know their weights only after a forward
            weights = self.method.routing()
            self.method.route(batch, task)
        return None if weights is None else self._by_task(weights)

    def _by_task(self, weights: Tensor) -> list[dict[str, float]]:
        """Names the weights over blocks (N, T) by their tasks."""
        names = [task.name for task in self.tasks]
        return [dict(zip(names, row, strict=True)) for row in weights.tolist()]

    def answers(
        self,
        prompts: Sequence[str | Example],
        task: str | None = None,
        replies: Sequence[Reply] | None = None,
    ) -> list[Answer]:
        """Answers prompts greedily, each at most as long as the longest answer of any task may be.

        Args:
            prompts: texts, or examples for whole conversations (their references do not count).
            task: its name, for methods that need it.
            replies: one per prompt, which receives the answer while it is written.

        Raises:
            RetainError: when nothing is learned yet, or the method needs the task's name.
        """
        self.refuse_unready()
        examples = [_example(prompt) for prompt in prompts]
        # The prompt's task is unknown, so the longest answer of any task is allowed.
        usual = self.experiment.evaluation
        longest = max(usual.max_new_tokens, *(known.max_new_tokens or 0 for known in self.tasks))
        config = usual.model_copy(update={"max_new_tokens": longest})
        outputs, weights = answer(
            self.backbone, self.method, task, examples, config, Progress(), replies
        )
        routing = [None] * len(outputs) if weights is None else self._by_task(weights)
        return [
            Answer(example.prompt, output, row)
            for example, output, row in zip(examples, outputs, routing, strict=True)
        ]

    def generate(self, prompts: Sequence[str], task: str | None = None) -> list[str]:
        """Answers prompts of any learned task greedily."""
        return [answer.output for answer in self.answers(prompts, task)]


def _example(prompt: str | Example) -> Example:
    return prompt if isinstance(prompt, Example) else Example(prompt, ("",))
