"""Use of a trained run: restored from its folder, it answers, routes, and scores learned tasks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from retain.backbone import Backbone, Features, LoadedModel, load_backbone, wrap_loaded
from retain.backbone.precision import refuse_lacking
from retain.errors import RetainError
from retain.evaluation.answers import Evaluation, answer, evaluate
from retain.evaluation.streaming import Reply
from retain.experiment.config import ExperimentConfig, check_method, resolved, stored_experiment
from retain.learner.compact import load_compacted
from retain.learner.seeds import Seeds
from retain.learner.task_files import stored_task
from retain.methods.base import Method, TaskContext
from retain.runs import results
from retain.runs.backbone_path import found_from
from retain.runs.directory import RunDirectory
from retain.runs.environment import (
    TEMPLATE,
    changes,
    fingerprints,
    refuse_other_backbone,
    template_of,
)
from retain.runs.records import CONFIG
from retain.system import processes
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
    """A run's model, which answers prompts, routes and scores. It writes nothing.

    `Learner` is one that learns more tasks.

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

    @classmethod
    def load(
        cls,
        folder: str | Path,
        progress: Progress | None = None,
        backbone: Backbone | LoadedModel | None = None,
        trust_remote_code: bool = False,
    ) -> Self:
        """Restores a run with all tasks that it has learned; see `Learner.load`."""
        path = Path(folder)
        run = results.open_run(path)
        experiment, method = stored_experiment(results.experiment_values(run), path / CONFIG)
        if not experiment.backbone.name and backbone is None:
            raise RetainError(
                f"{path}: its backbone was given as a loaded model without a name; give it again: "
                "Learner.load(folder, backbone=(model, tokenizer))"
            )
        if experiment.backbone.trust_remote_code and backbone is None and not trust_remote_code:
            raise RetainError(
                f"{path}: its backbone '{experiment.backbone.name}' runs code of its own; if you "
                "trust it, add --trust-remote-code (Learner.load: trust_remote_code=True)"
            )
        results.check_files(run, method.traits.latest_only)
        for complaint in results.unlisted(run):
            raise RetainError(complaint)
        results.rows(run)
        model = cls.__new__(cls)
        if isinstance(backbone, Backbone):
            backbone.prompt = experiment.prompt
        elif backbone is not None:
            backbone = wrap_loaded(backbone, experiment.prompt, experiment.backbone)
        model._set_up(experiment, run, progress, backbone)
        for index, task_folder in enumerate(run.learned()):
            task = stored_task(run, task_folder)
            model.tasks.append(task)
            seed = Seeds(experiment.seed, index).of(0)
            model.method.load(TaskContext(task.name, index, task_folder, seed))
            load_compacted(run, model.method, index)
        return model

    def _set_up(
        self,
        experiment: ExperimentConfig,
        run: RunDirectory,
        progress: Progress | None,
        backbone: Backbone | None,
    ) -> None:
        method, options = check_method(experiment.method, "method")
        device = backbone.device.type if backbone else experiment.backbone.device
        self.experiment = resolved(experiment, device)
        self.run = run
        self.progress = progress or Progress()
        self.tasks = []
        self._interrupted = False
        source, autocasts = self.experiment.backbone, self.experiment.training.autocasts
        processes.refuse_other_engines()
        trains_all = method.trains_backbone(options)
        if autocasts:
            refuse_lacking("bfloat16", device, "training.bf16")
        if run.exists:
            source = source.model_copy(update={"name": found_from(run.path, source.name)})
        self.backbone = backbone or load_backbone(source, experiment.prompt, trains_all)
        self.backbone.autocasts = autocasts
        processes.connect(self.backbone.device.type == "cpu")
        self._fingerprints = fingerprints(self.backbone)
        if run.exists:
            stored = results.environment(run)
            loaded = dict(self._fingerprints)
            for folder in run.learned():
                if template := results.task_record(run, folder).chat_template:
                    stored[TEMPLATE] = template
                    loaded[TEMPLATE] = template_of(self.backbone)
            other = refuse_other_backbone(stored, loaded, run.path, self.backbone.name)
            for notice in filter(None, (other, changes(stored))):
                self.progress.message(notice)
        transformers.set_seed(experiment.seed)
        self.method = method(self.backbone, options)

    # -- use

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
        """Tokenizes a prompt, with the chat template if the learned tasks were written with it.

        Raises:
            RetainError: if the prompt does not fit in the window, or the chat template refuses it.
        """
        templated = self.templated(task)
        return self.backbone.encode(example, with_answer=False, templated=templated)

    def templated(self, task: str | None = None) -> bool | None:
        """Whether prompts are written with the chat template; None if that depends on the prompt.

        Under `prompt.chat_template: auto` the prompts of the named task, or without a name those of
        all learned tasks, decide.
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

        An answer has at most `answer_limit` tokens, or fewer if its reply has a lower limit.

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
