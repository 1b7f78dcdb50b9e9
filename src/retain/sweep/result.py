"""What a sweep found: the shape of sweep.json, from which every table is made."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from retain.runs.records import Record, Sample

SWEEP = "sweep.json"


class Measures(Record):
    """What a finished run scored and cost; None where it was not measured.

    Scores are in points from 0 to 100, as `metrics.continual` has them. `rouge_l` is the mean
    ROUGE-L of the newest answers over tasks, whatever the tasks' own metrics. `own_block` is the
    mean weight of a task's test prompts on the block that learned it. `parameters` is the largest
    number that a task trained. `megabytes` is what the run keeps beside its records, and
    `megabytes_per_task` the median over tasks.
    """

    average_performance: float | None
    forgetting: float | None
    forward_transfer: float | None
    backward_transfer: float | None
    rouge_l: float | None
    own_block: float | None
    parameters: int | None
    megabytes_per_task: float
    megabytes: float
    minutes: float | None


class SweepRun(Record):
    """One run of a sweep.

    `status` is `failed` when the run could not be made, or is not the one that the sweep asks for;
    `reason` says why. `tasks`, `matrix` and `measures` are those of a finished run; `matrix[i][j]`
    is the score on task j after learning task i. `samples` and `standard_errors` are as in
    scores.json.
    """

    variant: str
    seed: int
    path: str
    status: Literal["finished", "missing", "failed"]
    reason: str | None = None
    tasks: list[str] = Field(default_factory=list)
    matrix: list[list[float | None]] = Field(default_factory=list)
    samples: list[list[Sample]] = Field(default_factory=list)
    measures: Measures | None = None
    standard_errors: dict[str, float] = Field(default_factory=dict)


class Sweep(Record):
    """`sweep.json`: all runs, in the order of variants and seeds.

    `settings` holds the sections of the merged experiment that all variants share; `variants` has
    of each variant the sections that they do not. `dev` says that examples of the training split
    were tested on. `notes` are about values that are missing.
    """

    files: list[str]
    dev: bool
    seeds: list[int]
    settings: dict[str, Any]
    variants: dict[str, dict[str, Any]]
    runs: list[SweepRun]
    notes: list[str]

    @property
    def failed(self) -> list[SweepRun]:
        """The runs that could not be made."""
        return [run for run in self.runs if run.status == "failed"]
