"""Use of a trained run: answers, routing, and scores on the learned tasks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from retain.backbone import Backbone, Features
from retain.errors import RetainError
from retain.evaluation.answers import Evaluation, answer, evaluate
from retain.evaluation.streaming import Reply
from retain.experiment.config import ExperimentConfig
from retain.methods.base import Method
from retain.runs import results
from retain.runs.directory import RunDirectory
from retain.system.progress import Progress
from retain.tasks import Example, Task

NO_TASK = "no learned task"
"""Note on an answer for which no block had a weight."""


@dataclass(frozen=True)
class Answer:
    """A generated answer.

    Attributes:
        prompt: the prompt.
        output: the generated text.
        routing: the weights over blocks by task name; None for a method that does not route. All
            are 0 for a prompt of no learned task, which the backbone alone has answered.
    """

    prompt: str
    output: str
    routing: dict[str, float] | None

    def routing_fields(self) -> dict[str, Any]:
        """Returns `routing` for JSON, with a `note` if the prompt is of no learned task."""
        unknown = self.routing is not None and not any(self.routing.values())
        return {"routing": self.routing, **({"note": NO_TASK} if unknown else {})}


class LearnedModel:
    """The part of `Learner` that answers prompts, routes and scores. It writes nothing.

    Attributes:
        run: the run's folder.
        experiment: the run's settings.
        backbone: the `Backbone`: prompts to tokens, losses, generation.
        method: the `Method`, with all that it has learned.
        tasks: the learned tasks in order, without their training examples.
        progress: receives messages and progress.
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

    def require_ready(self) -> None:
        """Raises a RetainError if no task is learned yet, or the last one was interrupted."""
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
        """Answers the test examples of all learned tasks and returns each task's score (0 to 100).

        Args:
            limit: the number of test examples per task; None stands for the run's setting.
        """
        self.require_ready()
        return {task.name: self._evaluate(task, limit).score for task in self.tasks}

    @property
    def scores(self) -> dict[str, Any]:
        """The content of scores.json: task names, score matrix, AP, F.Ra, FWT, BWT."""
        return results.scores(self.run).model_dump()

    @property
    def model(self) -> PreTrainedModel:
        """The transformers model with the method's layers, which use the weights of `route`."""
        return self.backbone.model

    def route(
        self, prompts: Sequence[str | Example], task: str | None = None
    ) -> list[dict[str, float]] | None:
        """Routes prompts, so that you can use `model` on them in a loop of your own.

        The weights over blocks stay set until the next call that routes or answers. The batch of a
        forward pass or generation must have one row per prompt, in the same order.

        Args:
            prompts: texts, or examples for whole conversations.
            task: the task's name, for methods that need it.

        Returns:
            The weights over blocks by task name, for each prompt; None for a method that does not
            route.

        Raises:
            RetainError: when nothing is learned yet, a prompt is no text, the task is unknown, or
                the method adds soft prompts to the input, which your own tokens would lack.
        """
        self.require_ready()
        if self.backbone.virtual_tokens:
            raise RetainError(
                f"Learner.route: method '{self.experiment.method['name']}' adds prompts to the "
                "input, which tokens of your own would lack; use answers"
            )
        examples = self._examples(prompts, task)
        if not examples:
            raise RetainError("Learner.route: no prompts; give it at least one")
        batch = self.backbone.collate([self.encode(example, task) for example in examples])
        with torch.no_grad(), self.backbone.precision():
            self.method.route(batch, task)
            self.backbone.read(batch)  # some methods know their weights only after a forward
            weights = self.method.routing()
            self.method.route(batch, task)
        return None if weights is None else self._by_task(weights)

    def encode(self, example: Example, task: str | None = None) -> Features:
        """Tokenizes a prompt as the learned tasks were written: with the chat template or not.

        Raises:
            RetainError: if the prompt does not fit in the window, or the chat template refuses it.
        """
        templated = self.templated(task)
        return self.backbone.encode(example, with_answer=False, templated=templated)

    def templated(self, task: str | None = None) -> bool | None:
        """Whether prompts are written with the chat template; None if that depends on the prompt.

        Under `prompt.chat_template: auto` it is so if the named task, or all tasks, were learned
        so.
        """
        if self.backbone.prompt.chat_template != "auto":
            return self.backbone.prompt.chat_template
        asked = [learned for learned in self.tasks if task in (None, learned.name)]
        ways = {self.backbone.is_templated(learned.test[0]) for learned in asked}
        return ways.pop() if len(ways) == 1 else None

    def _by_task(self, weights: Tensor) -> list[dict[str, float]]:
        """Converts weights over blocks (N, T) to a dict by task name for each prompt."""
        names = [task.name for task in self.tasks]
        return [dict(zip(names, row, strict=True)) for row in weights.tolist()]

    @property
    def answer_limit(self) -> int:
        """Maximum number of tokens of an answer: the largest `max_new_tokens` of run and tasks.

        The task of a prompt is unknown, so the longest answer of any task is allowed.
        """
        of_tasks = (task.max_new_tokens or 0 for task in self.tasks)
        return max(self.experiment.evaluation.max_new_tokens, *of_tasks)

    def answers(
        self,
        prompts: Sequence[str | Example],
        task: str | None = None,
        replies: Sequence[Reply] | None = None,
        encoded: Sequence[Features] | None = None,
    ) -> list[Answer]:
        """Answers prompts by greedy decoding, with their routing.

        An answer has at most `answer_limit` tokens, or those of its reply's lower limit.

        Args:
            prompts: texts, or examples for whole conversations (their references are ignored).
            task: the task's name, for methods that need it.
            replies: one per prompt; receives the answer in pieces while it is generated.
            encoded: the prompts as `encode` returns them, where that is done already.

        Raises:
            RetainError: when nothing is learned yet, a prompt is no text, the task is unknown, or
                the method needs its name.
        """
        self.require_ready()
        examples = self._examples(prompts, task)
        limit = self.answer_limit
        if replies:
            limit = max(min(limit, reply.limit or limit) for reply in replies)
        config = self.experiment.evaluation.model_copy(update={"max_new_tokens": limit})
        features = encoded or [self.encode(example, task) for example in examples]
        outputs, weights = answer(
            self.backbone, self.method, task, features, config, Progress(), replies
        )
        routing = [None] * len(outputs) if weights is None else self._by_task(weights)
        return [
            Answer(example.prompt, output, weights_by_task)
            for example, output, weights_by_task in zip(examples, outputs, routing, strict=True)
        ]

    def generate(self, prompts: Sequence[str], task: str | None = None) -> list[str]:
        """Answers prompts of any learned task by greedy decoding; returns the texts."""
        return [answer.output for answer in self.answers(prompts, task)]

    def _examples(self, prompts: Sequence[str | Example], task: str | None) -> list[Example]:
        """Returns prompts as examples.

        Raises:
            RetainError: when they are no list of texts or examples, one is empty, or no task of
                this name is learned.
        """
        if isinstance(prompts, str | Example) or not isinstance(prompts, Iterable):
            raise RetainError(
                f"prompts: expected a list of texts, got {_shown(prompts)}; use [...]"
            )
        names = [learned.name for learned in self.tasks]
        if task is not None and task not in names:
            known = ", ".join(names)
            raise RetainError(f"task '{task}': this run has not learned it; name one of {known}")
        examples = []
        for prompt in prompts:
            if not isinstance(prompt, str | Example):
                raise RetainError(f"prompts: {_shown(prompt)} is no text; give texts or Examples")
            example = Example(prompt, ("",)) if isinstance(prompt, str) else prompt
            if not example.prompt.strip() and not example.messages:
                raise RetainError("prompts: one of them is empty; give it a text")
            examples.append(example)
        return examples


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {value!r:.60}"
