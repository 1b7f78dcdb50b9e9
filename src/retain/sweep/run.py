"""Learns what is missing of a plan, one run after another, in any number of sittings."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace

from retain.errors import RetainError, StoppedError
from retain.experiment.read_tasks import load_stream
from retain.learner.stream import learn_stream, refuse_other_data
from retain.runs.outputs import check_folder
from retain.sweep.measure import Collector, finished
from retain.sweep.plan import Plan, PlannedRun
from retain.sweep.result import SWEEP, Sweep
from retain.system import processes
from retain.system.files import write_json
from retain.system.progress import Progress
from retain.tasks import Task

DEV_EXAMPLES = 60


def learn_sweep(plan: Plan, progress: Progress) -> Sweep:
    """Learns what is missing, all variants with the first seed first, and returns all results.

    A run that cannot be made is reported, and the others go on. `sweep.json` in the plan's folder
    is written at the start and after every run.

    Raises:
        RetainError: when the data cannot be read, before anything is learned or written.
        StoppedError: when the user asked to stop; the same sweep continues.
    """
    check_folder(plan.folder)
    streams = read_data(plan)
    collector = Collector(plan)
    sweep = _write(plan, collector)
    seeds = sweep.seeds
    for run in sorted(plan.runs, key=lambda run: seeds.index(run.seed)):
        progress.prefix = f"{run.name} · "
        if any(processes.gather([progress.stopping])):
            raise StoppedError(f"before {run.name}")
        try:
            if not _learn(run, streams[_key(run)], progress):
                continue
        except RetainError as error:
            collector.failures[run.name] = " ".join(str(error).split())
            progress.message(f"failed: {error}")
        sweep = _write(plan, collector)
    progress.prefix = ""
    return sweep


def read_data(plan: Plan) -> dict[str, list[Task]]:
    """The tasks of every run, by `_key`; runs with the same tasks share them.

    Raises:
        RetainError: naming the file and the line.
    """
    streams: dict[str, list[Task]] = {}
    for run in plan.runs:
        if _key(run) not in streams:
            tasks = load_stream(run.experiment.tasks)
            streams[_key(run)] = [on_dev(task) for task in tasks] if plan.dev else tasks
    return streams


def _key(run: PlannedRun) -> str:
    return json.dumps([task.model_dump(mode="json") for task in run.experiment.tasks])


def on_dev(task: Task) -> Task:
    """The task with its first 60 training examples as test examples, not trained on any more."""
    return replace(task, test=task.train[:DEV_EXAMPLES], train=task.train[DEV_EXAMPLES:])


def _learn(run: PlannedRun, tasks: Sequence[Task], progress: Progress) -> bool:
    """Learns a run, or what is left of it; False when it was finished before."""
    done = finished(run.experiment)
    if done is not None:
        refuse_other_data(done, tasks)
        return False
    began = time.monotonic()
    learn_stream(run.experiment, tasks, resume=True, progress=progress)
    progress.message(f"done in {time.monotonic() - began:.0f} s")
    return True


def _write(plan: Plan, collector: Collector) -> Sweep:
    sweep = collector.collect()
    write_json(plan.folder / SWEEP, sweep.model_dump(mode="json"))
    return sweep
