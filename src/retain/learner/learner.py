"""The sequence: for each task its phases, then finish, save, and evaluation on all tasks so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from transformers import TrainerCallback

from retain.backbone import Backbone, BackboneConfig, LoadedModel, PromptConfig, wrap_loaded
from retain.backbone.precision import refuse_lacking, told
from retain.errors import RetainError
from retain.evaluation.answers import EvaluationConfig
from retain.experiment.config import ExperimentConfig, check_method, training_of
from retain.experiment.validation import check
from retain.learner.check_examples import check_examples
from retain.learner.check_resources import check_resources
from retain.learner.check_shard import check_shard
from retain.learner.learned_model import LearnedModel
from retain.learner.lesson import Lesson
from retain.learner.score_row import ScoreRow
from retain.learner.seeds import Seeds
from retain.learner.task_files import (
    fixed_training,
    is_learned_last,
    save_task,
    start_run,
    write_settings,
)
from retain.methods.base import TaskContext
from retain.runs import results
from retain.runs.backbone_path import stored_name
from retain.runs.checkpoints import take_up
from retain.runs.directory import RunDirectory
from retain.runs.environment import quantizer
from retain.runs.outputs import check_folder
from retain.runs.records import UNFINISHED, ZERO_SHOT, read_record
from retain.system import processes
from retain.system.files import remove_folders, write_json
from retain.system.progress import Progress
from retain.tasks import Task
from retain.training import optimizer
from retain.training.config import TrainingConfig, effective
from retain.training.fit import check_class
from retain.training.trackers import require_installed
from retain.training.trainer import check_callbacks


class Learner(LearnedModel):
    """A model that learns one task after another.

    Args:
        backbone: hub id, model folder, GGUF file, a loaded model of transformers with its tokenizer
            (a tuple of both; the model is changed in place), or a `Backbone`.
        method: a name of `list_methods()`, or `{"name": …, options}`.
        output: the run's folder; it is created when the first task is learned.
        training: names of `TrainingConfig`, which are those of transformers.TrainingArguments.
        evaluation: names of `EvaluationConfig`.
        prompt: names of `PromptConfig`; not allowed with a `Backbone`, which has its own.
        seed: fixes everything random.
        progress: receives messages and progress; silent by default.
        callbacks: instances of transformers.TrainerCallback, passed to Trainer in every phase.
            They are not stored with the run. A resumed run has the same numbers as an uninterrupted
            one only if they do not change the training. A callback that ends training stops the
            run, as Ctrl-C does.

    Attributes:
        tasks: the learned tasks in order, without what they learned from.
        run: the run's folder, a `RunDirectory`.
        experiment: the run's settings, an `ExperimentConfig`.
        backbone: the `Backbone`: prompts to tokens, losses, generation.
        method: the `Method`, with all that it has learned.

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
        callbacks: Sequence[TrainerCallback] | None = None,
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
        callbacks: Sequence[TrainerCallback] | None = None,
    ) -> Learner:
        """Returns a new learner with the settings of an experiment. It has learned no task yet."""
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
        callbacks: Sequence[TrainerCallback] | None = None,
    ) -> Self:
        """Restores a run with all tasks that it has learned.

        Args:
            folder: the run directory.
            progress: receives messages and progress.
            backbone: the run's backbone if it is loaded already: a model with its tokenizer, or a
                `Backbone`. It must be untrained, and gets the run's prompt format.
            trust_remote_code: allows the backbone to run code from its model folder. The run's
                setting alone is not enough, as the run may come from elsewhere.
            callbacks: as in `Learner`.

        Raises:
            RetainError: when the folder is not a run, one of its files is damaged, or its backbone
                would run code that is not permitted.
        """
        checked = check_callbacks(callbacks)
        learner = super().load(folder, progress, backbone, trust_remote_code)
        learner._callbacks = checked
        return learner

    def _begin(
        self,
        experiment: ExperimentConfig,
        progress: Progress | None,
        backbone: Backbone | None,
        callbacks: Sequence[TrainerCallback] | None,
    ) -> None:
        checked = check_callbacks(callbacks)
        run = RunDirectory(Path(experiment.output or "runs/run"))
        if run.exists:
            raise RetainError(
                f"{run.path}: already holds a run; continue it with --resume (Learner.load in "
                "Python), or name another folder with --output"
            )
        run.refuse_foreign()
        check_folder(run.path)
        optimizer.require_installed(experiment.training.optim)
        _check_shard(experiment, experiment.training)
        self._set_up(experiment, run, progress, backbone)
        self._callbacks = checked
        name = stored_name(experiment.backbone.name, run.path)
        source = self.experiment.backbone.model_copy(update={"name": name})
        self.experiment = self.experiment.model_copy(update={"backbone": source})

    def _set_up(
        self,
        experiment: ExperimentConfig,
        run: RunDirectory,
        progress: Progress | None,
        backbone: Backbone | None,
    ) -> None:
        super()._set_up(experiment, run, progress, backbone)
        self._checked: list[Task] = []
        self._notices: dict[str, list[str]] = {}  # by task; those about all tasks under ""

    # -- learning

    def learn(self, task: Task, more: bool = False) -> list[float | None]:
        """Learns one more task, saves it, and scores all tasks so far.

        To continue after a crash, call `Learner.load` and then `learn` with the same task. The task
        that was learned last is not learned again; only its missing scores are computed.

        Args:
            task: the task to learn.
            more: whether further tasks follow at once. A method that trains on all tasks together
                (multitask) then waits for the last one, and `evaluation.old` says which older
                scores are measured: the last row has all of them.

        Returns:
            The new row of the score matrix, one score (0 to 100) per task; None where a task is not
            scored.

        Raises:
            RetainError: when another task of this name is learned already, or the task has no
                training or development examples.
        """
        self._refuse_interrupted()
        if is_learned_last(self.run, task, self.backbone):
            self.progress.message(f"{task.name}: is learned; completes its scores where any lack")
            self.finish_evaluation(more)
            return list(results.rows(self.run)[-1].scores)
        self._check(task)
        with self.run.locked():
            lesson = self._prepare(task)
            self.method.waiting = self.method.traits.waits and more
            self._interrupted = True
            lesson.learn()
            save_task(self.run, lesson)
            self.tasks.append(replace(task, train=(), dev=()))
            self._interrupted = False
            self._clean_up()
            self._score(more)
        return list(results.rows(self.run)[-1].scores)

    def _check(self, task: Task) -> None:
        """Raises a RetainError for a task that cannot be learned, before anything is written."""
        if task.name in (learned.name for learned in self.tasks):
            raise RetainError(f"task '{task.name}': already learned; give the new one another name")
        if not task.train or not task.dev:
            raise RetainError(
                f"task '{task.name}': has {len(task.train)} training and {len(task.dev)} "
                "development examples; give it at least one of each"
            )
        if task not in self._checked:
            self.check_tasks([task])

    def _prepare(self, task: Task) -> Lesson:
        """Starts a new run if needed, makes up for missing scores, and opens the task's folder."""
        environment = {**self._fingerprints, **quantizer(self.backbone)}
        start_run(self.run, self.experiment, environment)
        self._report_checks(task)
        self._complete(more=True)
        index = len(self.tasks)
        folder, seeds = self.run.task_folder(index, task.name), Seeds(self.experiment.seed, index)
        training = self._training(task)
        take_up(
            self.run,
            folder,
            task,
            fixed_training(task.training),
            effective(training.shard),
            self.progress.message,
        )
        self._score_zero_shot(task, folder / ZERO_SHOT)
        return Lesson(
            self.method,
            self.backbone,
            training,
            task,
            TaskContext(task.name, index, folder, seeds.of(0)),
            seeds,
            self.progress,
            self._callbacks,
        )

    def _report_checks(self, task: Task) -> None:
        """Reports the notices of `check_tasks` on all tasks and on this one, each once."""
        for line in (*self._notices.pop("", ()), *self._notices.pop(task.name, ())):
            self.progress.message(line)

    def check_tasks(self, tasks: Sequence[Task]) -> None:
        """Checks tasks before any of them is learned; `learn` reports the notices.

        `learn` calls this for a task that was not checked before.

        Raises:
            RetainError: when the tasks need more disk space or memory than is free, a task's score
                would mean nothing, its training settings are not valid or need a feature that the
                class of model lacks, or a tracker is not installed.
        """
        settings = [self._training(task) for task in tasks]
        for config in (self.experiment.training, *settings):
            require_installed(config.report_to)
            optimizer.require_installed(config.optim)
            check_class(self.backbone, config)
            if config.autocasts:
                refuse_lacking("bfloat16", self.backbone.device.type, "training.bf16")
            _check_shard(self.experiment, config)
        notice = check_resources(self.method, list(zip(tasks, settings, strict=True)), self.run)
        formats = [] if self.run.exists else [self._formats()]
        self._notices = {"": [*formats, notice] if notice else formats}
        for task in tasks:
            self._notices[task.name] = check_examples(
                task, self.backbone, self.experiment.evaluation, tasks, self.run.exists
            )
        self._checked = list(tasks)

    def _formats(self) -> str:
        """One line on the number formats that the run computes in."""
        method, options = check_method(self.experiment.method, "method")
        trains_all = method.trains_backbone(options)
        dtype, autocasts = self.experiment.backbone.dtype, self.experiment.training.autocasts
        return told(dtype, autocasts, self.backbone.device.type, trains_all)

    def take_over(self, experiment: ExperimentConfig, tasks: Sequence[Task]) -> None:
        """Continues with the settings of another experiment.

        It may differ from the run's only in the tasks that are not learned yet and in the settings
        of `experiment.config.FREE`. These are written once the tasks have passed `check_tasks`.

        Args:
            experiment: the other experiment.
            tasks: the tasks that are not learned yet.

        Raises:
            RetainError: as in `check_tasks`.
        """
        update = {name: getattr(experiment, name) for name in ("tasks", "training", "evaluation")}
        before = self.experiment
        self.experiment = before.model_copy(update=update)
        self.check_tasks(tasks)
        if self.experiment != before:
            with self.run.locked():
                write_settings(self.run, self.experiment)

    def finish_evaluation(self, more: bool = False) -> None:
        """Scores the row of the last learned task if it is missing, and rewrites scores.json.

        Args:
            more: as in `learn`.
        """
        self._refuse_interrupted()
        with self.run.locked():
            self._complete(more)
            results.write_scores(self.run)

    def _training(self, task: Task) -> TrainingConfig:
        """Returns the run's training settings, overridden by those of the task."""
        if task.training and self.method.traits.waits:
            raise RetainError(
                f"task '{task.name}': cannot have 'training' of its own where tasks are learned "
                "together; remove the field"
            )
        return training_of(self.experiment, task)

    # -- scores

    def _complete(self, more: bool) -> None:
        """Completes the newest task where a crash came before: cleans up and scores its row."""
        if self.tasks:
            self._clean_up()
            self._score(more)

    def _clean_up(self) -> None:
        """Deletes the newest task's checkpoints."""
        remove_folders(self.run.learned()[-1] / UNFINISHED)

    def _score(self, more: bool) -> None:
        """Scores all tasks so far, unless their row is there already."""
        row = ScoreRow(
            self.run,
            self.tasks,
            self._evaluate,
            self.method,
            self.experiment.evaluation,
            self.experiment.seed,
            more,
        )
        row.write(self.progress.message)

    def _score_zero_shot(self, task: Task, path: Path) -> None:
        """Scores a task before it is learned, if asked for; not if the method needs its name."""
        wanted = self.experiment.evaluation.zero_shot and not self.method.traits.needs_task_id
        if wanted and not processes.broadcast(_is_score(path)):
            write_json(path, self._evaluate(task).score)


def _check_shard(experiment: ExperimentConfig, training: TrainingConfig) -> None:
    """Checks what training settings share out, for the method of an experiment."""
    method, options = check_method(experiment.method, "method")
    check_shard(method, options, experiment.backbone, training, effective(training.shard))


def _loaded(
    backbone: str | Path | BackboneConfig | Backbone | LoadedModel,
    prompt: PromptConfig | Mapping[str, Any] | None,
) -> tuple[Backbone | None, BackboneConfig | str]:
    """Returns the backbone if it is loaded already, and the value to record for it."""
    if isinstance(backbone, str | Path | BackboneConfig):
        return None, str(backbone) if isinstance(backbone, Path) else backbone
    if not isinstance(backbone, Backbone):
        backbone = wrap_loaded(backbone, check(PromptConfig, prompt or {}, "Learner", "prompt."))
    elif prompt is not None:
        raise RetainError("Learner: a loaded Backbone has its own prompt; leave 'prompt' out")
    return backbone, backbone.source


def _is_score(path: Path) -> bool:
    """Tells whether a valid score was stored before a crash; a damaged one is not."""
    try:
        read_record(float, path)
    except RetainError:
        return False
    return True
