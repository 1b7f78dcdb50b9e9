"""The sequence: for each task its phases, then finish, save, and evaluation on all tasks so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback

from retain.backbone import (
    Backbone,
    BackboneConfig,
    LoadedModel,
    PromptConfig,
    load_backbone,
    wrap_loaded,
)
from retain.errors import RetainError
from retain.evaluation.answers import Evaluation, EvaluationConfig, answer, evaluate
from retain.evaluation.streaming import Reply
from retain.experiment.config import ExperimentConfig, check_method, resolved, stored_experiment
from retain.experiment.validation import check
from retain.learner.check_examples import check_examples
from retain.learner.check_resources import check_room
from retain.learner.lesson import Lesson, Seeds
from retain.learner.score_row import score_row
from retain.methods import find
from retain.methods.base import TaskContext
from retain.runs import results
from retain.runs.checkpoints import take_up
from retain.runs.directory import RunDirectory
from retain.runs.environment import changes, fingerprints, refuse_other_backbone, versions
from retain.runs.records import (
    CONFIG,
    COST,
    ENVIRONMENT,
    TASK,
    TEST,
    TRAINING,
    UNFINISHED,
    ZERO_SHOT,
    read_record,
)
from retain.system import processes
from retain.system.files import read_jsonl, remove_folders, write_json, write_jsonl, write_text
from retain.system.progress import Progress
from retain.tasks import Example, Task
from retain.tasks.readers import parse_row
from retain.training.config import TrainingConfig
from retain.training.trackers import refuse_missing
from retain.training.trainer import check_callbacks


@dataclass(frozen=True)
class Answer:
    """A generated answer, with the weights over blocks by name where the method routes."""

    prompt: str
    output: str
    routing: dict[str, float] | None


class Learner:
    """A model that learns one task after another.

    Args:
        backbone: hub id, model folder, GGUF file, a loaded model of transformers with its tokenizer
            (a tuple of both; the model is changed in place), or a `Backbone`.
        method: a name of `list_methods()`, or `{"name": …, options}`.
        output: the run's folder; it is created when the first task is learned.
        training: names of `TrainingConfig`, which are those of transformers.TrainingArguments.
        evaluation: names of `EvaluationConfig`.
        prompt: names of `PromptConfig`; ignored for a loaded `Backbone`, which has its own.
        seed: fixes everything random.
        progress: receives what happens; silent by default.
        callbacks: instances of transformers.TrainerCallback, for Trainer in every phase. They are
            no part of the run. A run that is continued has the numbers of one that was never
            interrupted only if they change nothing of the training; one that ends training stops
            the run, as Ctrl-C does.

    Attributes:
        backbone: the `Backbone`: prompts to tokens, losses, generation.
        method: the `Method`, with all that it has learned.
        tasks: the learned tasks in order, without their training examples.

    Raises:
        RetainError: for bad input, before anything is trained or written.
    """

    def __init__(
        self,
        backbone: str | Path | BackboneConfig | Backbone | LoadedModel,
        method: str | Mapping[str, Any] = "sapt",
        output: str | Path = "runs/run",
        *,
        training: TrainingConfig | Mapping[str, Any] | None = None,
        evaluation: EvaluationConfig | Mapping[str, Any] | None = None,
        prompt: PromptConfig | Mapping[str, Any] | None = None,
        seed: int = 0,
        progress: Progress | None = None,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        loaded, source = _loaded(backbone, prompt)
        values = {
            "backbone": source,
            "method": method if isinstance(method, str) else dict(method),
            "training": training or {},
            "evaluation": evaluation or {},
            "prompt": loaded.prompt if loaded else prompt or {},
            "seed": seed,
            "output": str(output),
        }
        self._begin(check(ExperimentConfig, values, "Learner"), progress, loaded, callbacks)

    @classmethod
    def from_config(
        cls,
        experiment: ExperimentConfig,
        progress: Progress | None = None,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> Learner:
        """Returns a new learner as an experiment describes it, which has learned no task yet."""
        learner = cls.__new__(cls)
        learner._begin(experiment, progress, None, callbacks)
        return learner

    @classmethod
    def load(
        cls,
        folder: str | Path,
        progress: Progress | None = None,
        backbone: Backbone | LoadedModel | None = None,
        trust_remote_code: bool = False,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> Learner:
        """Restores a run with everything it has learned.

        Args:
            folder: the run directory.
            progress: receives what happens.
            backbone: the run's own, freshly loaded, instead of loading it here: a model with its
                tokenizer, or a `Backbone`. It takes on the run's prompt format.
            trust_remote_code: lets a backbone run code of its own; that the run says so is not
                enough, as it may come from elsewhere.
            callbacks: as of `Learner`.

        Raises:
            RetainError: when the folder is no run, one of its files is damaged, or its backbone
                would run code that is not permitted.
        """
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
        results.check_tasks(run, method.traits.latest_only)
        for complaint in results.unlisted(run, method.traits.latest_only):
            raise RetainError(complaint)
        results.rows(run)
        learner = cls.__new__(cls)
        if isinstance(backbone, tuple):
            backbone = wrap_loaded(backbone, experiment.prompt, experiment.backbone)
        elif backbone is not None:
            backbone.prompt = experiment.prompt
        learner._set_up(experiment, run, progress, backbone, callbacks)
        for index, task_folder in enumerate(run.learned()):
            task = _stored_task(run, task_folder)
            learner.tasks.append(task)
            seed = Seeds(experiment.seed, index).of(0)
            learner.method.load(TaskContext(task.name, index, task_folder, seed))
        return learner

    def _begin(
        self,
        experiment: ExperimentConfig,
        progress: Progress | None,
        backbone: Backbone | None,
        callbacks: Sequence[TrainerCallback],
    ) -> None:
        run = RunDirectory(Path(experiment.output or "runs/run"))
        if run.exists:
            raise RetainError(
                f"{run.path}: already holds a run; continue it with --resume (Learner.load in "
                "Python), or name another folder with --output"
            )
        run.refuse_foreign()
        self._set_up(experiment, run, progress, backbone, callbacks)

    def _set_up(
        self,
        experiment: ExperimentConfig,
        run: RunDirectory,
        progress: Progress | None,
        backbone: Backbone | None,
        callbacks: Sequence[TrainerCallback],
    ) -> None:
        name, options = check_method(experiment.method, "method")
        self.experiment = resolved(experiment)
        self.run = run
        self.progress = progress or Progress()
        self._callbacks = check_callbacks(callbacks)
        self.tasks: list[Task] = []
        self._checked: list[Task] = []
        self._notices: dict[str, list[str]] = {}  # by task; those about all tasks under ""
        self._interrupted = False
        self.backbone = backbone or load_backbone(experiment.backbone, experiment.prompt)
        processes.connect(self.backbone.device.type == "cpu")
        self._fingerprints = fingerprints(self.backbone)
        if run.exists:
            stored = results.environment(run)
            found = self._fingerprints
            told = refuse_other_backbone(stored, found, run.path, self.backbone.name)
            for news in filter(None, (told, changes(stored))):
                self.progress.message(news)
        transformers.set_seed(experiment.seed)
        method = find(name)
        assert method is not None  # check_method has found it
        self.method = method(self.backbone, options)

    # -- learning

    def learn(self, task: Task, more: bool = False) -> list[float | None]:
        """Learns one more task, saves it, and scores all tasks so far; returns that row of R.

        With `more`, other tasks are to follow at once: a method that learns them together
        (multitask) waits for the last one. After a crash, `Learner.load` and the same task continue
        where it stopped.

        Raises:
            RetainError: when a task of this name is learned and scored already, or the new one has
                no examples to learn from.
        """
        self._refuse_interrupted()
        if self._awaits_scores(task):
            self.finish_evaluation()
            return list(self.scores["matrix"][-1])
        self._refuse_unlearnable(task)
        if task not in self._checked:
            self.check_tasks([task])
        index = len(self.tasks)
        folder, seeds = self.run.task_folder(index, task.name), Seeds(self.experiment.seed, index)
        context = TaskContext(task.name, index, folder, seeds.of(0))
        with self.run.locked():
            self._start_run()
            self._report_checks(task)
            self._score()  # what a crash left out
            take_up(self.run, folder, task, self.progress.message)
            self._score_zero_shot(task, folder / ZERO_SHOT)
            self.method.waiting = self.method.traits.waits and more
            self._interrupted = True
            lesson = self._lesson(task, context, seeds)
            lesson.learn()
            self._save(task, context, lesson)
            self._interrupted = False
            self._score()
        return list(self.scores["matrix"][-1])

    def _refuse_unlearnable(self, task: Task) -> None:
        if task.name in (known.name for known in self.tasks):
            raise RetainError(f"task '{task.name}': already learned; give the new one another name")
        if not task.train or not task.dev:
            raise RetainError(
                f"task '{task.name}': has {len(task.train)} training and {len(task.dev)} "
                "development examples; give it at least one of each"
            )

    def _report_checks(self, task: Task) -> None:
        """Reports what `check_tasks` noticed of all tasks, and of this one, each time once."""
        for line in (*self._notices.pop("", ()), *self._notices.pop(task.name, ())):
            self.progress.message(line)

    def check_tasks(self, tasks: Sequence[Task]) -> None:
        """Looks at tasks before the first is learned; `learn` asks for its own, and says it.

        Raises:
            RetainError: when what they take beside the model does not fit on disk or in RAM, the
                score of one would mean nothing, its own training settings are not valid, or a
                tracker is not installed.
        """
        settings = [self._training(task) for task in tasks]
        for each in (self.experiment.training, *settings):
            refuse_missing(each.report_to)
        takes = check_room(self.method, list(zip(tasks, settings, strict=True)), self.run)
        self._notices = {"": [takes] if takes else []}
        for task in tasks:
            self._notices[task.name] = check_examples(
                task, self.backbone, self.experiment.evaluation, tasks
            )
        self._checked = list(tasks)

    def take_over(self, experiment: ExperimentConfig, tasks: Sequence[Task]) -> None:
        """Goes on with another experiment's settings: other tasks to come, and `config.FREE`.

        They are written when the tasks to come have passed their check under them.

        Raises:
            RetainError: as in `check_tasks`.
        """
        update = {name: getattr(experiment, name) for name in ("tasks", "training", "evaluation")}
        before = self.experiment
        self.experiment = before.model_copy(update=update)
        self.check_tasks(tasks)
        if self.experiment != before:
            with self.run.locked():
                self._write_settings()

    def finish_evaluation(self) -> None:
        """Scores the last learned task's row, if a crash left it out, and renews scores.json."""
        self._refuse_interrupted()
        with self.run.locked():
            self._score()
            results.write_scores(self.run)

    def _awaits_scores(self, task: Task) -> bool:
        """Whether this very task was learned, and a crash came before its row of scores."""
        if not self.tasks or len(self.scores["matrix"]) == len(self.tasks):
            return False
        return results.same_task(self.run, len(self.tasks) - 1, task)

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

    def _start_run(self) -> None:
        if self.run.exists:
            return
        path = self.run.path / ENVIRONMENT
        write_json(path, {**versions(), **self._fingerprints})
        self._write_settings(path)

    def _write_settings(self, *others: Path) -> None:
        path = self.run.path / CONFIG
        values = self.experiment.model_dump(mode="json")
        write_text(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
        self.run.commit([path, *others])

    def _training(self, task: Task) -> TrainingConfig:
        """The run's settings with the task's own."""
        if task.training and self.method.traits.waits:
            raise RetainError(
                f"task '{task.name}': cannot have 'training' of its own where tasks are learned "
                "together; remove the field"
            )
        values = {**self.experiment.training.model_dump(), **task.training}
        return check(TrainingConfig, values, f"task '{task.name}'", "training.")

    def _lesson(self, task: Task, context: TaskContext, seeds: Seeds) -> Lesson:
        config = self._training(task)
        return Lesson(
            self.method,
            self.backbone,
            config,
            task,
            context,
            seeds,
            self.progress,
            self._callbacks,
        )

    def _save(self, task: Task, context: TaskContext, lesson: Lesson) -> None:
        """Writes what a learned task leaves, and commits it: from here on it is learned."""
        folder = context.folder
        self.method.save(context)
        write_json(folder / COST, lesson.cost())
        write_jsonl(folder / TRAINING, lesson.log)
        write_jsonl(folder / TEST, (example.as_row() for example in task.test))
        description = {
            "name": task.name,
            "metric": task.metric,
            "training": dict(task.training),
            "max_new_tokens": task.max_new_tokens,
            "examples": {s: len(getattr(task, s)) for s in ("train", "dev", "test")},
            "fingerprints": task.fingerprints(),
        }
        write_json(folder / TASK, description)
        self.run.commit_folder(folder, UNFINISHED, self.method.traits.latest_only)
        self.tasks.append(replace(task, train=(), dev=()))

    # -- scores

    def _score(self) -> None:
        """Scores all tasks so far, unless that is done, and clears the newest one's work."""
        if self.tasks:
            remove_folders(self.run.learned()[-1] / UNFINISHED)
            self.run.remove_superseded(self.method.traits.latest_only)
            seeds = Seeds(self.experiment.seed, len(self.tasks) - 1)
            score_row(
                self.run, self.tasks, self._evaluate, self.method, seeds, self.progress.message
            )

    def _score_zero_shot(self, task: Task, path: Path) -> None:
        """Scores a task that is about to be learned; a method that needs its name cannot."""
        wanted = self.experiment.evaluation.zero_shot and not self.method.traits.needs_task_id
        if wanted and not processes.broadcast(_is_score(path)):
            write_json(path, self._evaluate(task).score)

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

    # -- inference

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


def _loaded(
    backbone: str | Path | BackboneConfig | Backbone | LoadedModel,
    prompt: PromptConfig | Mapping[str, Any] | None,
) -> tuple[Backbone | None, BackboneConfig | str]:
    """Returns the backbone, if it is loaded already, and what the run records of it."""
    if isinstance(backbone, tuple):
        backbone = wrap_loaded(backbone, check(PromptConfig, prompt or {}, "Learner", "prompt."))
    elif isinstance(backbone, Backbone) and prompt is not None:
        raise RetainError("Learner: a loaded Backbone has its own prompt; leave 'prompt' out")
    if isinstance(backbone, Backbone):
        return backbone, backbone.source
    return None, backbone if isinstance(backbone, BackboneConfig) else str(backbone)


def _example(prompt: str | Example) -> Example:
    return prompt if isinstance(prompt, Example) else Example(prompt, ("",))


def _stored_task(run: RunDirectory, folder: Path) -> Task:
    description = results.task_record(run, folder)
    path = folder / TEST
    test = [parse_row(row, str(path)) for row in read_jsonl(path)]
    return Task(
        description.name,
        (),
        (),
        test,
        description.metric,
        max_new_tokens=description.max_new_tokens,
    )


def _is_score(path: Path) -> bool:
    """Whether a score was kept before a crash; what is damaged is measured again."""
    try:
        read_record(float, path)
    except RetainError:
        return False
    return True
