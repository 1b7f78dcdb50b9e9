"""What the runs of a plan scored and cost so far, read from their folders."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retain.errors import RetainError
from retain.experiment.config import ExperimentConfig, stored_experiment
from retain.experiment.resume import refuse_changes
from retain.metrics import continual
from retain.metrics.text import score
from retain.runs import results
from retain.runs.directory import RunDirectory
from retain.runs.records import CONFIG, Prediction, read_records
from retain.sweep.plan import Plan, PlannedRun, shared_settings
from retain.sweep.result import Measures, Sweep, SweepRun


def finished(experiment: ExperimentConfig) -> RunDirectory | None:
    """The run in the experiment's output, when there is one and all of its tasks are scored.

    Raises:
        RetainError: when it was made under other settings, or is damaged.
    """
    folder = Path(str(experiment.output))
    if not RunDirectory(folder).exists:
        return None
    run = results.open_run(folder)
    stored, _ = stored_experiment(results.experiment_values(run), folder / CONFIG)
    count = len(experiment.tasks)
    refuse_changes(stored, experiment, folder, count)
    if len(run.learned()) > count:
        raise RetainError(
            f"{folder}: has learned {len(run.learned())} tasks, and the stream has {count}; roll "
            "it back, or use another --output"
        )
    return run if len(results.rows(run)) == count else None


@dataclass
class Collector:
    """Collects a plan's results, and keeps what was measured of a run that is finished.

    Attributes:
        plan: the runs.
        failures: by a run's name why it could not be made.
    """

    plan: Plan
    failures: dict[str, str] = field(default_factory=dict)
    _measured: dict[str, SweepRun] = field(default_factory=dict)

    def collect(self) -> Sweep:
        """The results as they are now."""
        plan, notes = self.plan, list[str]()
        references: dict[int, RunDirectory] = {}
        for seed, reference in plan.references.items():
            try:
                if run := finished(reference.experiment):
                    references[seed] = run
            except RetainError as error:
                notes.append(f"no forward transfer with seed {seed}: {error}")
        settings = shared_settings(plan.runs)
        first = next(iter(settings.values()))
        common = [key for key in first if all(s[key] == first[key] for s in settings.values())]
        return Sweep(
            files=[str(path) for path in plan.experiment.files],
            dev=plan.dev,
            seeds=list(dict.fromkeys(run.seed for run in plan.runs)),
            settings={key: first[key] for key in common},
            variants={
                variant: {key: value for key, value in values.items() if key not in common}
                for variant, values in settings.items()
            },
            runs=[self._result(run, references, notes) for run in plan.runs],
            notes=notes,
        )

    def _result(
        self, planned: PlannedRun, references: Mapping[int, RunDirectory], notes: list[str]
    ) -> SweepRun:
        where: dict[str, Any] = {
            "variant": planned.variant,
            "seed": planned.seed,
            "path": str(planned.folder),
        }
        if planned.name in self.failures:
            return SweepRun(**where, status="failed", reason=self.failures[planned.name])
        try:
            run = finished(planned.experiment)
            if run is None:
                return SweepRun(**where, status="missing")
            if planned.name not in self._measured:
                scores = results.scores(run)
                self._measured[planned.name] = SweepRun(
                    **where,
                    status="finished",
                    tasks=scores.tasks,
                    matrix=scores.matrix,
                    samples=scores.samples,
                    measures=measure(run),
                    standard_errors=scores.standard_errors,
                )
        except RetainError as error:
            return SweepRun(**where, status="failed", reason=str(error))
        result = self._measured[planned.name]
        reference = references.get(planned.seed)
        if reference is None or result.measures is None:
            return result
        try:
            single = results.single_scores(run, reference.path)
        except RetainError as error:  # damaged, or this variant is tested in another way
            notes.append(f"{planned.name}: no forward transfer: {error}")
            return result
        gain = {"forward_transfer": continual.forward_transfer(result.matrix, single)}
        measures = result.measures.model_copy(update=gain)
        return result.model_copy(update={"measures": measures})


def measure(run: RunDirectory) -> Measures:
    """What a finished run scored and cost; forward transfer as `retain report --single` left it.

    Raises:
        RetainError: naming a damaged file.
    """
    metrics = results.scores(run).metrics
    costs = results.costs(run)
    sizes = [cost.bytes / 1e6 for cost in costs]
    return Measures(
        average_performance=metrics["average_performance"],
        forgetting=metrics["forgetting"],
        forward_transfer=metrics["forward_transfer"],
        backward_transfer=metrics["backward_transfer"],
        rouge_l=_rouge_l(run),
        own_block=_own_block(run),
        parameters=max((cost.parameters for cost in costs), default=0) or None,
        megabytes_per_task=statistics.median(sizes),  # of a full model only the newest task has one
        megabytes=sum(sizes),
        minutes=sum(cost.seconds for cost in costs) / 60 or None,
    )


def _own_block(run: RunDirectory) -> float | None:
    """Mean over tasks of the weight on the task's own block; None without a block per task."""
    routing = results.rows(run)[-1].routing  # tasks × blocks
    weights = [row for row in routing if row is not None]
    if not weights or not len(weights) == len(routing) == len(weights[0]):
        return None
    return statistics.mean(row[i] for i, row in enumerate(weights))


def _rouge_l(run: RunDirectory) -> float | None:
    """Mean over tasks of the ROUGE-L of the newest answers; None if some are of a sample."""
    extracts = {
        task.name: task.extract
        for task in (results.task_record(run, folder) for folder in run.learned())
    }
    scores: list[float | None] = []
    newest = results.newest_predictions(run)
    if len(newest) < len(extracts):
        return None
    for name, path in newest.items():
        rows = read_records(Prediction, path)
        if any(row.example is not None for row in rows):
            return None
        predictions = [row.prediction for row in rows]
        references, prompts = [row.references for row in rows], [row.prompt for row in rows]
        scores.append(score("rouge_l", predictions, references, prompts, extracts[name]))
    return continual.average_performance([scores])
