"""Prints a results table: runs what is missing of it, in any number of sittings.

    python -m benchmarks.results configs/streams/superni-short.yaml --variants seqlora "sapt rank=4"

A variant is a method with the options that differ from the experiment's; a sweep is a list of them,
such as "sapt reflection.weight="{0,0.5,2}. An option that begins with a part of the experiment sets
that: "seqft training.learning_rate=1e-4 backbone.dtype=float32". The experiment's own method keeps
its options; another one takes over those that mean the same in it.

Each run lies in OUTPUT/<config>/<variant>-<seed>, with --order in OUTPUT/<config>-<order>/…; an
interrupted one continues where it stopped. A run that cannot be made is told and leaves its line
empty; the status is then 2. FWT compares with the `pertask` of the same seed in OUTPUT/<config>.
With --dev part of train stands in for the test split: for choosing settings.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from retain import Task, load_stream
from retain.errors import RetainError
from retain.experiment.compose import read_experiment
from retain.experiment.config import (
    ExperimentConfig,
    refuse_changes,
    stored_experiment,
)
from retain.learner.stream import learn_stream
from retain.methods import METHODS
from retain.methods.amlora.diagnostics import GATES, Gates
from retain.methods.shared.sequential import LORA
from retain.metrics import continual
from retain.metrics.text import score
from retain.runs import results
from retain.runs.directory import RunDirectory
from retain.runs.records import CONFIG, Prediction, read_records
from retain.system.progress import ConsoleProgress

SHARED = (*LORA, "tune", "replay", "teacher", "generator")
"""Options of an experiment's method that mean the same in another."""

PARTS = ("backbone", "training", "evaluation", "prompt")
"""What a variant's option sets instead of its method's, when it begins so."""

COLUMNS = {
    "average_performance": "AP",
    "forgetting": "F.Ra",
    "forward_transfer": "FWT",
    "backward_transfer": "BWT",
    "rouge_l": "AP, ROUGE-L",
    "own_block": "own block",
    "blocks": "blocks",
    "parameters": "trained",
    "each": "MB a task",
    "megabytes": "MB kept",
    "minutes": "minutes",
}

Runs = dict[tuple[str, int], ExperimentConfig]
"""By variant and seed."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("config", type=Path)
    parser.add_argument("--variants", nargs="+", required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--order", help="2,1,3 learns the second task first; or reversed")
    parser.add_argument("--dev", action="store_true")
    parser.add_argument("--table-only", action="store_true", help="run nothing")
    parser.add_argument("--output", type=Path, default=Path("runs/results"))
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="A.B=C")
    return parser.parse_args(arguments)


def plan(options: argparse.Namespace) -> Runs:
    """All runs of the table, checked before the first is made.

    Raises:
        RetainError: naming a bad variant, or what is wrong with the experiment.
    """
    method = read_experiment(options.config, options.changes).method
    kept = [kept_of(method, *variant.split()) for variant in options.variants]
    for change in options.changes:
        part, _, option = change.partition(".")
        key = option.partition("=")[0].partition(".")[0]
        if part == "method" and not any(key in each for each in kept):
            raise RetainError(
                f"--set {change}: no variant takes it over; write {option} into the one it is for"
            )
    return _runs(options, options.variants, options.order)


def _runs(options: argparse.Namespace, variants: Iterable[str], order: str | None) -> Runs:
    name = folder_name(options.config) + ("-dev" if options.dev else "")
    changes = list(options.changes)
    if order is not None:
        order = "".join(order.split())
        name = f"{name}-{order}"
        changes.append(f"order={order}" if order == "reversed" else f"order=[{order}]")
    found = {}
    for variant in variants:
        for seed in options.seeds:
            experiment = experiment_of(variant, options.config, [*changes, f"seed={seed}"])
            update = {"output": str(options.output / name / run_name(variant, seed))}
            found[variant, seed] = experiment.model_copy(update=update)
    return found


def experiment_of(variant: str, config: Path, changes: Sequence[str] = ()) -> ExperimentConfig:
    """The experiment with the variant's method and options.

    Raises:
        RetainError: naming the first bad option.
    """
    base = read_experiment(config, changes)
    if not base.tasks:
        raise RetainError(f"{config}: no field 'tasks'; list at least one")
    name, *options = variant.split() or [""]
    method = {**kept_of(base.method, name, *options), "name": name}
    own = [o if o.split("=")[0].split(".")[0] in PARTS else f"method.{o}" for o in options]
    try:
        return read_experiment(config, [*changes, f"method={json.dumps(method)}", *own])
    except RetainError as error:
        raise RetainError(f"variant '{variant}': {error}") from None


def kept_of(method: Mapping[str, Any], name: str = "", *options: str) -> dict[str, Any]:
    """The experiment's options that a variant starts from: all of its own method's, or shared."""
    known = METHODS[name].Config.model_fields if name in METHODS else {}
    own = name == method["name"]
    kept = {k: v for k, v in method.items() if own or (k in known and k in SHARED)}
    lora = kept.get("tune") == "lora" and "tune=full" not in options
    if "tune" in known and not lora and "tune=lora" not in options:
        kept = {k: v for k, v in kept.items() if k not in LORA}
    return kept


def folder_name(config: Path) -> str:
    """Such as `superni-short`, from the path below configs/streams/ or configs/."""
    parts = config.with_suffix("").parts
    below = parts[parts.index("configs") + 1 :] if "configs" in parts else parts[-1:]
    return "-".join(below[1:] if below[0] == "streams" and len(below) > 1 else below)


def run_name(variant: str, seed: int) -> str:
    """The run's folder, such as `seekr,score=random-0`."""
    return f"{','.join(variant.split())}-{seed}".replace("/", "_")


def run(experiment: ExperimentConfig, tasks: Sequence[Task]) -> None:
    """Learns one stream, or what is left of it."""
    progress = ConsoleProgress(Console(stderr=True), Path(str(experiment.output)).name)
    began = time.monotonic()
    learn_stream(experiment, tasks, resume=True, progress=progress)
    progress.message(f"done in {time.monotonic() - began:.0f} s")


def on_dev(task: Task) -> Task:
    """Sixty training examples are tested on instead, and no longer trained on."""
    return replace(task, test=task.train[:60], train=task.train[60:])


def finished(experiment: ExperimentConfig) -> RunDirectory | None:
    """The run, when there is one and it came to its end.

    Raises:
        RetainError: when it was made under other settings, or is damaged.
    """
    folder = Path(str(experiment.output))
    if not RunDirectory(folder).exists:
        return None
    opened = results.open_run(folder)
    stored, _ = stored_experiment(results.experiment_values(opened), folder / CONFIG)
    refuse_changes(stored, experiment, folder, len(experiment.tasks))
    return opened if len(results.rows(opened)) == len(experiment.tasks) else None


def row(opened: RunDirectory, pertask: RunDirectory | None) -> dict[str, float | None]:
    """One run's line of the table, by `COLUMNS`."""
    try:
        single = results.single_scores(opened, pertask.path) if pertask else None
    except RetainError as error:  # damaged, or this variant is tested in another way
        _say(f"FWT of {opened.path} is left out: {error}")
        single = None
    line: dict[str, float | None] = dict(results.scores(opened, single).metrics)
    routing = results.rows(opened)[-1].routing
    weights = [each for each in routing if each is not None]
    if weights and len(weights) == len(routing) == len(weights[0]):
        line["own_block"] = statistics.mean(each[i] for i, each in enumerate(weights))
    gates = results.read(opened, opened.learned()[-1] / GATES, Gates)
    line["blocks"] = gates.effective if gates else None
    costs = results.costs(opened)
    line["parameters"] = max((cost.parameters for cost in costs), default=0) or None
    line["minutes"] = sum(cost.seconds for cost in costs) / 60 or None
    sizes = [cost.bytes / 1e6 for cost in costs]
    line["each"] = statistics.median(sizes)  # of whole weights only the newest task has some
    line["megabytes"] = sum(sizes)
    line["rouge_l"] = continual.average_performance([_rouge(opened)])
    return line


def _rouge(run: RunDirectory) -> list[float | None]:
    """ROUGE-L of the newest predictions on each task."""
    found: list[float | None] = []
    for path in results.newest_predictions(run).values():
        rows = read_records(Prediction, path)
        predictions = [row.prediction for row in rows]
        references, prompts = [row.references for row in rows], [row.prompt for row in rows]
        found.append(score("rouge_l", predictions, references, prompts))
    return found


def make(options: argparse.Namespace) -> int:
    """Makes the missing runs, prints the table, and returns the exit status.

    Raises:
        RetainError: before anything is run.
    """
    runs = plan(options)
    failed = set() if options.table_only else learn_missing(options, runs)
    pertask: dict[int, RunDirectory | None] = {}
    for (_, seed), experiment in _runs(options, ["pertask"], None).items():
        try:
            pertask[seed] = finished(experiment)
        except RetainError as error:
            _say(f"FWT with seed {seed} is left out: {error}")
    print(f"| variant | seed | {' | '.join(COLUMNS.values())} |")
    print("|---" * (len(COLUMNS) + 2) + "|")
    matrices = []
    for (variant, seed), experiment in runs.items():
        line: dict[str, float | None] = {}
        try:
            opened = None if (variant, seed) in failed else finished(experiment)
            if opened:
                line = row(opened, pertask.get(seed))
                matrix = results.scores(opened).matrix
                matrices.append(f"{variant} | {seed} | {json.dumps(matrix)}")
        except RetainError as error:
            _say(f"error: {run_name(variant, seed)}: {error}")
            failed.add((variant, seed))
        values = (line.get(column) for column in COLUMNS)
        cells = ["–" if v is None else f"{v:,.0f}" if v > 1e4 else f"{v:.2f}" for v in values]
        print(f"| {variant} | {seed} | {' | '.join(cells)} |")
    print("\nScore matrices:", *matrices, sep="\n")
    return 2 if failed else 0


def learn_missing(options: argparse.Namespace, runs: Runs) -> set[tuple[str, int]]:
    """Learns what is missing, seed by seed; returns what could not be learned, and says why."""
    tasks = load_stream(next(iter(runs.values())).tasks)
    tasks = [on_dev(task) for task in tasks] if options.dev else tasks
    failed = set()
    for variant, seed in sorted(runs, key=lambda key: options.seeds.index(key[1])):
        try:
            run(runs[variant, seed], tasks)
        except RetainError as error:
            _say(f"error: {run_name(variant, seed)}: {error}")
            failed.add((variant, seed))
    return failed


def _say(text: str) -> None:
    print(" ".join(text.split()), file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    try:
        status = make(options)
    except RetainError as error:
        _say(f"error: {error}")
        status = 2
    except KeyboardInterrupt:
        _say("stopped; the same command goes on")
        status = 130
    sys.exit(status)


if __name__ == "__main__":
    main()
