"""Commands that learn: run, learn, sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from retain.cli.discovering import check_options, learn_discovered
from retain.cli.shared import (
    Plugins,
    Run,
    TrustCode,
    app,
    console,
    path,
    print_scores,
    progress_for,
    say,
    warn,
    widened,
)
from retain.errors import RetainError


@app.command()
def run(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Experiment files, merged from left to right.", metavar="FILE…", parser=path
        ),
    ],
    method: Annotated[str | None, typer.Option(help="Method, instead of the files'.")] = None,
    backbone: Annotated[
        str | None,
        typer.Option(help="Backbone: a hub id, a folder, or a short name of the files'."),
    ] = None,
    order: Annotated[
        str | None,
        typer.Option(help="Order of the tasks: a name of the stream's, 2,1,3, or reversed."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Run folder, instead of the files'.", parser=path)
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue an interrupted run, or start a new one."),
    ] = False,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a field: --set training.max_steps=50.", metavar="A.B=C"),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Print the merged experiment as YAML, with the memory it takes."
        ),
    ] = False,
    plugins: Plugins = None,
) -> None:
    """Learn a stream of tasks; after each, score all tasks so far."""
    from retain.experiment.compose import as_yaml, read_experiment
    from retain.experiment.read_tasks import load_stream
    from retain.learner.memory import memory_table
    from retain.learner.stream import learn_stream

    experiment = read_experiment(
        files, changes or (), method=method, backbone=backbone, order=order
    )
    if output is not None:
        experiment = experiment.model_copy(update={"output": str(output)})
    if dry_run:
        say(as_yaml(experiment).rstrip("\n"))
        for line in memory_table(experiment):
            say(f"# {line}")
        return
    named = " + ".join(map(str, files))
    if experiment.output is None:
        raise RetainError(f"{named}: no field 'output'; add it, or name a folder with --output")
    if not experiment.tasks:
        raise RetainError(f"{named}: no field 'tasks'; list at least one")
    tasks = load_stream(experiment.tasks)
    learn_stream(experiment, tasks, resume, progress_for(experiment.method["name"]))
    print_scores([Path(experiment.output)])


@app.command()
def learn(
    run: Run,
    task: Annotated[
        Path,
        typer.Argument(help="File of prompts and answers.", metavar="TASK.jsonl", parser=path),
    ],
    name: Annotated[str | None, typer.Option(help="The task's name; default: the file's.")] = None,
    test: Annotated[
        Path | None, typer.Option(help="Test file; default: a fifth of the examples.", parser=path)
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(help="Metric: rouge_l, exact_answer, …; default: the reader's (exact_match)."),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Any field of a task: --set training.learning_rate=1e-4.",
            metavar="A.B=C",
        ),
    ] = None,
    discover: Annotated[
        bool,
        typer.Option("--discover", help="Find the tasks in a file of several; show them, and ask."),
    ] = False,
    known: Annotated[
        Literal["skip", "refresh", "block"],
        typer.Option(
            help="With --discover, examples of a learned task: leave them out; learn them as one "
            "more task with that task's tests; learn them as a task of their own."
        ),
    ] = "skip",
    yes: Annotated[
        bool, typer.Option("--yes", help="With --discover: learn without asking.")
    ] = False,
    trust_remote_code: TrustCode = False,
    plugins: Plugins = None,
) -> None:
    """Add one more task to a finished run, and score all tasks; with --discover, several."""
    from retain.experiment.config import TaskConfig
    from retain.experiment.read_tasks import read_task
    from retain.experiment.validation import check, set_field
    from retain.learner.learner import Learner

    if discover:
        check_options(name, test, changes or (), yes)
    elif yes or known != "skip":
        raise RetainError("learn: --yes and --known go with --discover alone; add it")
    values: dict[str, Any] = {"path": str(task), "name": name, "metric": metric}
    values |= {} if test is None else {"test": str(test)}
    for change in changes or ():
        set_field(values, change)
    if discover:
        learn_discovered(run, values, known, yes, trust_remote_code)
        return
    read = read_task(check(TaskConfig, values, "learn"))
    learner = Learner.load(run, progress_for("learn"), trust_remote_code=trust_remote_code)
    learner.learn(read)
    print_scores([run])


class _SeveralValues(TyperCommand):
    """A command whose `SEVERAL` options take all values up to the next option."""

    SEVERAL = ("--variants", "--seeds")

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeats the option before each of its values, as the parser reads it."""
        spread: list[str] = []
        option, has_value = "", False
        for word in args:
            if word in self.SEVERAL:
                option, has_value = word, False
            elif word.startswith("-"):
                option = ""
            elif option:
                spread += [option] if has_value else []
                has_value = True
            spread.append(word)
        return super().parse_args(ctx, spread)


@app.command(cls=_SeveralValues)
def sweep(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Experiment files, merged from left to right.", metavar="FILE…", parser=path
        ),
    ],
    variants: Annotated[
        list[str],
        typer.Option(
            "--variants",
            help="Methods, with options that differ from the files': sapt 'sapt rank=4'.",
            metavar="VARIANT…",
        ),
    ],
    seeds: Annotated[
        list[int],
        typer.Option("--seeds", min=0, help="One run of each variant per seed.", metavar="SEED…"),
    ] = [0, 1],  # noqa: B006
    order: Annotated[
        str | None,
        typer.Option(help="Order of the tasks: a name of the stream's, 2,1,3, or reversed."),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(help="Backbone: a hub id, a folder, or a short name of the files'."),
    ] = None,
    dev: Annotated[
        bool, typer.Option("--dev", help="Test on part of train: to choose settings.")
    ] = False,
    table_only: Annotated[
        bool, typer.Option("--table-only", help="Show what there is; run nothing.")
    ] = False,
    output: Annotated[
        Path, typer.Option(help="Folder of the runs.", metavar="DIR", parser=path)
    ] = Path("runs/sweep"),
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a field for all variants.", metavar="A.B=C"),
    ] = None,
    result: Annotated[
        Path | None,
        typer.Option("--json", help="Also write the result there.", metavar="FILE", parser=path),
    ] = None,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the table as Markdown.")
    ] = False,
    rows: Annotated[
        Path | None,
        typer.Option("--csv", help="Also write a row per run.", metavar="FILE", parser=path),
    ] = None,
    plugins: Plugins = None,
) -> None:
    """Run what is missing of a table of methods, options and seeds, and print it.

    The same command continues where it was interrupted. DIR holds the runs, and the result as
    sweep.json, in a folder named after the first file.
    """
    from retain.runs import outputs
    from retain.sweep import table
    from retain.sweep.measure import Collector
    from retain.sweep.plan import Experiment, plan_sweep
    from retain.sweep.run import learn_sweep
    from retain.system.files import write_json, write_text

    outputs.check_outputs((result, outputs.SWEEP_JSON), (rows, outputs.SWEEP_CSV))
    experiment = Experiment(files, changes or (), backbone, order)
    plan = plan_sweep(experiment, variants, seeds, output, dev)
    for line in plan.warnings:
        warn(line)
    done = Collector(plan).collect() if table_only else learn_sweep(plan, progress_for(""))
    if as_markdown:
        print(table.as_markdown(done), end="")
    else:
        widened(console).print(table.terminal_tables(done))
    if result is not None:
        write_json(result, done.model_dump(mode="json"))
    if rows is not None:
        write_text(rows, table.as_csv(done))
    for note in done.notes:
        warn(note)
    for run in done.failed:
        reason = str(run.reason)
        warn(reason if run.path in reason else f"{run.path}: {reason}", "error")
    if done.failed:
        raise typer.Exit(2)
