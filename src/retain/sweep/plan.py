"""Which runs a sweep consists of; all are checked before the first one is learned.

A variant is a method and the options that differ from the experiment files, such as `sapt rank=4`:
the run that `retain run FILE --method sapt --set method.rank=4` makes. An option that begins with a
section of the experiment sets that instead: `seqft training.learning_rate=1e-4`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from retain.errors import RetainError
from retain.experiment.compose import read_experiment
from retain.experiment.config import ExperimentConfig, check_method, resolved
from retain.methods import list_methods

SECTIONS = ("backbone", "tasks", "training", "evaluation", "prompt")
"""What an option of a variant sets instead of the method's, when it begins with one of these."""

OPTION_FOR = {
    "method": "--variants",
    "method.name": "--variants",
    "order": "--order",
    "seed": "--seeds",
    "output": "--output",
}
"""Fields that a sweep sets itself, and the option that says how."""


@dataclass(frozen=True)
class Experiment:
    """Experiment files, and what is changed in them for all runs of a sweep."""

    files: Sequence[Path]
    changes: Sequence[str] = ()
    backbone: str | None = None
    order: str | None = None

    def read(self, method: str | None, changes: Iterable[str] = ()) -> ExperimentConfig:
        """Reads the files with a method, or with the one that they name.

        Raises:
            RetainError: naming what is wrong, and where.
        """
        experiment = read_experiment(
            self.files,
            [*self.changes, *changes],
            method=method,
            backbone=self.backbone,
            order=self.order,
        )
        if not experiment.tasks:
            named = " + ".join(map(str, self.files))
            raise RetainError(f"{named}: no field 'tasks'; list at least one")
        return experiment


@dataclass(frozen=True)
class PlannedRun:
    """One run: a variant with a seed.

    Attributes:
        variant: as it was given, with single spaces.
        seed: the run's.
        folder: where the run is, or will be.
        experiment: what is learned there.
    """

    variant: str
    seed: int
    folder: Path
    experiment: ExperimentConfig

    @property
    def name(self) -> str:
        """The folder's name, such as `sapt,rank=4-0`."""
        return self.folder.name


@dataclass(frozen=True)
class Plan:
    """The runs of a sweep.

    Attributes:
        experiment: the files, and what is changed for all runs.
        folder: holds the runs' folders.
        dev: whether examples of the training split are tested on, instead of the test split.
        runs: by variant, then by seed, as they were given.
        references: by seed the `pertask` run that forward transfer compares with.
        warnings: what is valid and probably unintended.
    """

    experiment: Experiment
    folder: Path
    dev: bool
    runs: Sequence[PlannedRun]
    references: Mapping[int, PlannedRun]
    warnings: Sequence[str]


def plan_sweep(
    experiment: Experiment,
    variants: Sequence[str],
    seeds: Sequence[int],
    output: Path,
    dev: bool = False,
) -> Plan:
    """Plans a run for each variant and seed, in `output`/<stream>/<variant>-<seed>.

    The stream's name is that of the first file, with the order where one is given.

    Raises:
        RetainError: naming a bad variant or seed, two variants that are the same run, or what is
            wrong with the experiment.
    """
    for change in experiment.changes:
        field = change.partition("=")[0]
        if field in OPTION_FOR:
            raise RetainError(f"--set {change}: use {OPTION_FOR[field]} for it")
    for number, seed in enumerate(seeds):
        if seed in seeds[:number]:
            raise RetainError(f"--seeds: {seed} is there twice; give it once")
    stream = experiment.files[0].stem + ("-dev" if dev else "")
    in_order = experiment
    folder = output / stream
    if experiment.order is not None:
        order = "".join(experiment.order.split())
        in_order = replace(experiment, order=order)
        folder = output / f"{stream}-{order}"
    variants = [" ".join(variant.split()) for variant in variants]
    by_variant = [_runs(in_order, folder, variant, seeds) for variant in variants]
    _refuse_same(by_variant)
    references: list[PlannedRun] = []
    warnings = [line for runs in by_variant for line in _left_behind(in_order, runs[0])]
    try:
        references = _runs(replace(experiment, order=None), output / stream, "pertask", seeds)
    except RetainError as error:
        warnings.append(f"no forward transfer: {error}")
    return Plan(
        experiment=in_order,
        folder=folder,
        dev=dev,
        runs=[run for runs in by_variant for run in runs],
        references={run.seed: run for run in references},
        warnings=warnings,
    )


def _runs(
    experiment: Experiment, folder: Path, variant: str, seeds: Sequence[int]
) -> list[PlannedRun]:
    name, *options = variant.split() or [""]
    if not name:
        known = ", ".join(list_methods())
        raise RetainError(f"variant '': no method; begin it with one of {known}")
    changes = [o if _field(o).split(".")[0] in SECTIONS else f"method.{o}" for o in options]
    runs = []
    for seed in seeds:
        try:
            read = experiment.read(name, [*changes, f"seed={seed}"])
        except RetainError as error:
            raise RetainError(f"variant '{variant}': {error}") from None
        place = folder / f"{','.join(variant.split())}-{seed}".replace("/", "_").replace("*", "all")
        read = read.model_copy(update={"output": str(place)})
        runs.append(PlannedRun(variant, seed, place, read))
    return runs


def _field(option: str) -> str:
    return option.partition("=")[0]


def shared_settings(runs: Iterable[PlannedRun]) -> dict[str, dict[str, Any]]:
    """By variant all settings but seed and output, every option of the method spelled out."""
    return {
        run.variant: resolved(run.experiment).model_dump(mode="json", exclude={"seed", "output"})
        for run in runs
    }


def _refuse_same(by_variant: Sequence[Sequence[PlannedRun]]) -> None:
    first = [runs[0] for runs in by_variant]
    settings = [shared_settings([run])[run.variant] for run in first]
    for one, other in combinations(range(len(first)), 2):
        names = f"variants '{first[one].variant}' and '{first[other].variant}'"
        if settings[one] == settings[other]:
            raise RetainError(f"{names} are the same run; leave one out")
        if first[one].folder == first[other].folder:
            raise RetainError(f"{names} would share the folder {first[one].folder}; leave one out")


def _left_behind(experiment: Experiment, run: PlannedRun) -> list[str]:
    """A line on options that the files give their own method, and that this one would take too."""
    try:
        in_files = dict(experiment.read(None).method)
    except RetainError:  # they name no method
        return []
    method = run.experiment.method
    taken = check_method(method, run.variant)[1]
    files_name = in_files.pop("name")
    if method["name"] == files_name:
        return []
    chosen = {_field(option).split(".")[0] for option in run.variant.split()[1:]}
    options = []
    for key, value in in_files.items():
        if key in chosen or key not in type(taken).model_fields:
            continue
        try:
            shared = check_method({**method, key: value}, run.variant)[1]
        except RetainError:  # it has no use for it, such as a rank without a LoRA
            continue
        if shared != taken:
            options.append(f"{key}={json.dumps(value, separators=(',', ':'))}")
    if not options:
        return []
    text = " ".join(options)
    return [
        f"variant '{run.variant}' does not take over {text}, which the files have for "
        f"{files_name}; to share that, give '{run.variant} {text}'"
    ]
