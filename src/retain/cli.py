"""The command line: each command is a few lines over the library."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand

from retain.errors import RetainError, StoppedError
from retain.system import processes

INTERRUPTED = 130
"""The exit status after Ctrl-C, as shells have it; typer returns it for a KeyboardInterrupt."""

NEEDS = "task name: in order to answer; old data: examples of earlier tasks, in training"
WIDE = 240
"""Columns of a table that is read by other programs."""

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Teach a language model one task after another, without forgetting the earlier ones.",
)
console = Console(quiet=not processes.is_first())

Run = Annotated[Path, typer.Argument(help="The run's folder.", metavar="RUN")]
TrustCode = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Let the run's backbone run code of its own."),
]


def _load_plugins(names: list[str] | None) -> list[str] | None:
    """Imports the modules that the user named, before the command looks up any method."""
    if names:
        from retain.methods import load_plugins

        load_plugins(names, Path())
    return names


Plugins = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        callback=_load_plugins,
        envvar="RETAIN_PLUGINS",
        help="A module or .py file that registers methods. It runs with your rights.",
        metavar="MODULE",
    ),
]
Single = Annotated[
    Path | None,
    typer.Option("--single", help="A pertask run on the same test data, for forward transfer."),
]


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


def _print_version(wanted: bool) -> None:
    if wanted:
        _say(f"retain {version('retain')}")
        raise typer.Exit


@app.callback()
def _always(
    shown: Annotated[
        bool,
        typer.Option(
            "--version", help="Print it and exit.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None: ...


@app.command()
def run(
    files: Annotated[
        list[Path],
        typer.Argument(help="Experiment files, merged from left to right.", metavar="FILE…"),
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
    output: Annotated[Path | None, typer.Option(help="Run folder, instead of the files'.")] = None,
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
        typer.Option("--dry-run", help="Print the merged experiment as YAML, and stop."),
    ] = False,
    plugins: Plugins = None,
) -> None:
    """Learn a stream of tasks, scoring all tasks so far after each."""
    from retain.experiment.compose import as_yaml, read_experiment
    from retain.experiment.stream import load_stream
    from retain.learner.stream import learn_stream

    experiment = read_experiment(
        files, changes or (), method=method, backbone=backbone, order=order
    )
    if output is not None:
        experiment = experiment.model_copy(update={"output": str(output)})
    if dry_run:
        _say(as_yaml(experiment).rstrip("\n"))
        return
    named = " + ".join(map(str, files))
    if experiment.output is None:
        raise RetainError(f"{named}: no field 'output'; add it, or name a folder with --output")
    if not experiment.tasks:
        raise RetainError(f"{named}: no field 'tasks'; list at least one")
    tasks = load_stream(experiment.tasks)
    learn_stream(experiment, tasks, resume, _progress(experiment.method["name"]))
    _print_scores([Path(experiment.output)])


@app.command()
def learn(
    run: Run,
    task: Annotated[Path, typer.Argument(help="Rows of prompt and answer.", metavar="TASK.jsonl")],
    name: Annotated[
        str | None, typer.Option(help="The task's name; the file's by default.")
    ] = None,
    test: Annotated[Path | None, typer.Option(help="Test rows; else a fifth is held out.")] = None,
    metric: Annotated[
        str, typer.Option(help="exact_match, rouge_l, exact_answer, ….")
    ] = "exact_match",
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Any field of a task: --set training.learning_rate=1e-4.",
            metavar="A.B=C",
        ),
    ] = None,
    trust_remote_code: TrustCode = False,
    plugins: Plugins = None,
) -> None:
    """Add tomorrow's task to a finished run."""
    from retain.experiment.config import TaskConfig
    from retain.experiment.stream import read_task
    from retain.experiment.validation import check, set_field
    from retain.learner import Learner

    values: dict[str, Any] = {"path": str(task), "name": name, "metric": metric}
    values |= {} if test is None else {"test": str(test)}
    for change in changes or ():
        set_field(values, change)
    read = read_task(check(TaskConfig, values, "learn"))
    learner = Learner.load(run, _progress("learn"), trust_remote_code=trust_remote_code)
    learner.learn(read)
    _print_scores([run])


@app.command("eval")
def evaluate(
    run: Run,
    limit: Annotated[int | None, typer.Option(min=1, help="Examples per task.")] = None,
    general: Annotated[
        str | None,
        typer.Option(help="Tasks of lm-eval instead, or YAML files of such.", metavar="A,B"),
    ] = None,
    trust_remote_code: TrustCode = False,
    plugins: Plugins = None,
) -> None:
    """Answer every learned task's test examples again; nothing is written."""
    from retain.learner import Learner

    if general is not None:
        from retain.report.ability import general_table

        try:
            from retain.harness.ability import general_ability
        except ModuleNotFoundError as missing:
            raise RetainError(
                f"eval --general: {missing.name} is not installed; "
                "run: pip install 'retain[general]'"
            ) from None
        names = [name.strip() for name in general.split(",") if name.strip()]
        found = general_ability(run, names, limit, _progress("eval"), trust_remote_code)
        console.print(general_table(found))
        return
    learner = Learner.load(run, _progress("eval"), trust_remote_code=trust_remote_code)
    scores = learner.evaluate(limit)
    table = Table("task", "score")
    for name, score in scores.items():
        table.add_row(Text(name), f"{score:.1f}")
    console.print(table)


@app.command()
def generate(
    run: Run,
    prompts: Annotated[
        list[str], typer.Argument(help="Prompts; - reads lines.", metavar="PROMPT…")
    ],
    task: Annotated[str | None, typer.Option(help="For methods that need the task.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per prompt.")] = False,
    trust_remote_code: TrustCode = False,
    plugins: Plugins = None,
) -> None:
    """Answer prompts of any learned task."""
    from retain.learner import Learner

    try:
        if prompts == ["-"]:
            prompts = [line.rstrip("\n") for line in sys.stdin if line.strip()]
        "".join(prompts).encode()
    except UnicodeError:
        raise RetainError("generate: a prompt is not UTF-8 text; convert it") from None
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise RetainError("generate: an empty prompt; give it a text")
    learner = Learner.load(run, trust_remote_code=trust_remote_code)
    if len(prompts) == 1 and sys.stdout.isatty() and not as_json:
        from retain.evaluation.streaming import Reply

        learner.answers(prompts, task, [Reply(partial(print, end="", flush=True))])
        print()
        return
    for answer in learner.answers(prompts, task):
        if as_json:
            print(json.dumps(vars(answer), ensure_ascii=False))
        else:
            print(answer.output)


@app.command()
def serve(
    run: Run,
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    queue: Annotated[int, typer.Option(min=1, help="Requests that may wait; more get 429.")] = 64,
    trust_remote_code: TrustCode = False,
    plugins: Plugins = None,
) -> None:
    """Answer OpenAI's /v1/chat/completions over HTTP; a page at / tries it.

    RETAIN_API_KEY, if set, is the key that requests need, as 'Authorization: Bearer KEY'.
    """
    try:
        from retain.serve import serve as start
    except ModuleNotFoundError as missing:
        raise RetainError(
            f"serve: {missing.name} is not installed; run: pip install 'retain[serve]'"
        ) from None
    start(run, host, port, queue, _say, trust_remote_code)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="One run, or several to compare.")],
    single: Single = None,
    output: Annotated[
        Path | None, typer.Option(help="The page to write; for one run RUN/report.html.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Also write the score matrices as a PNG.")
    ] = None,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the tables as Markdown.")
    ] = False,
    plugins: Plugins = None,
) -> None:
    """Print a run's scores and write one self-contained HTML page about it."""
    from retain.report import markdown, matrices_png, render, summarise
    from retain.runs import results
    from retain.system.files import write_text

    for path in runs:
        run = results.open_run(path)
        if single is not None:
            given = results.single_scores(run, single)
            with run.locked():
                results.write_scores(run, given)
    if output is None and len(runs) > 1:
        raise RetainError("report: several runs need --output FILE for their one page")
    page = output or runs[0] / "report.html"
    summaries = [summarise(path) for path in runs]
    write_text(page, render(summaries))
    if picture is not None:
        matrices_png(summaries, picture)
    if as_markdown:  # nothing else, so that it can be piped
        print(markdown(summaries), end="")
        return
    _print_scores(runs)
    _say(f"wrote {page}")


@app.command()
def inspect(
    run: Run,
    picture: Annotated[Path | None, typer.Option(help="Also write the pictures as a PNG.")] = None,
    task: Annotated[
        str | None,
        typer.Option(help="Task to show in detail (AM-LoRA: by layer); default: the newest."),
    ] = None,
    plugins: Plugins = None,
) -> None:
    """Show what the run's method attends to, such as blocks or heads, and its pseudo-samples."""
    from retain.report.sections import require_sections, section_tables, write_png
    from retain.runs.results import open_run

    sections = require_sections(open_run(run), task)
    if picture is not None:
        write_png(sections, picture)
    for section in sections:
        for table in section_tables(section):
            console.print(table)
        for sentence in section.sentences:
            _say(sentence)
    if picture is not None:
        _say(f"wrote {picture}")


@app.command()
def verify(
    run: Run,
    plugins: Plugins = None,
) -> None:
    """Read and check every file of a run."""
    from retain.learner.stream import complaints
    from retain.runs.results import open_run

    opened = open_run(run)
    lines = complaints(opened)
    for line in lines:
        _say(line)
    if lines:
        count = "1 file" if len(lines) == 1 else f"{len(lines)} files"
        raise RetainError(f"{run}: {count} failed verification (listed above)")
    _say(f"{len(opened.files)} files, all as they were written")


@app.command()
def export(
    run: Run,
    folder: Annotated[Path, typer.Argument(help="An empty or new folder.", metavar="DIR")],
    task: Annotated[str | None, typer.Option(help="Merge this task's block.")] = None,
    mixture: Annotated[
        list[str] | None,
        typer.Option(help="Merge blocks with fixed weights.", metavar="TASK=WEIGHT"),
    ] = None,
    trust_remote_code: TrustCode = False,
    plugins: Plugins = None,
) -> None:
    """Write a run's blocks as PEFT adapters, or one merged model, with a model card."""
    from retain.export import export as write
    from retain.learner import Learner

    if task is not None and mixture:
        raise RetainError("export: --task and --mixture exclude each other; give one of them")
    weights = {task: 1.0} if task is not None else None
    for part in mixture or ():
        name, _, value = part.rpartition("=")
        try:
            weights = {**(weights or {}), name: float(value)}
        except ValueError:
            raise RetainError(f"--mixture {part}: expected TASK=WEIGHT; correct it") from None
    learner = Learner.load(run, _progress(""), trust_remote_code=trust_remote_code)
    _say(write(learner, folder, weights))


@app.command()
def check(
    run: Run,
    points: Annotated[
        float,
        typer.Option(
            "--max-forgetting", help="Points that a task may lose since it was learned.", min=0
        ),
    ],
    plugins: Plugins = None,
) -> None:
    """Exit with status 1 if a task lost more than --max-forgetting points; for CI."""
    from retain.metrics.continual import points_lost
    from retain.runs import results

    scores = results.final_scores(results.open_run(run))
    lost = zip(scores.tasks, points_lost(scores.matrix), strict=True)
    worse = [(name, value) for name, value in lost if value is not None and value > points]
    for name, value in worse:
        _say(f"{name}: lost {value:.1f} points since it was learned")
    if worse:
        raise typer.Exit(1)
    _say(f"no task lost more than {points:g} points")


@app.command()
def compare(
    runs: Annotated[
        list[Path], typer.Argument(help="Finished runs; the first run's method is the base.")
    ],
    table: Annotated[
        Path | None, typer.Option("--csv", help="Also write a CSV with one row per run.")
    ] = None,
    page: Annotated[
        Path | None, typer.Option("--html", help="Also write the tables as an HTML page.")
    ] = None,
    plugins: Plugins = None,
) -> None:
    """Compare methods across seeds and task orders, with paired confidence intervals."""
    from retain.report import compare as comparison
    from retain.system.files import write_text

    entries = [comparison.read_entry(path) for path in dict.fromkeys(runs)]
    for line in comparison.warnings(entries):
        _warn(line)
    console.print(comparison.tables(entries))
    for path, render in ((table, comparison.as_csv), (page, comparison.as_html)):
        if path is not None:
            write_text(path, render(entries))
            _say(f"wrote {path}")


@app.command(cls=_SeveralValues)
def sweep(
    files: Annotated[
        list[Path],
        typer.Argument(help="Experiment files, merged from left to right.", metavar="FILE…"),
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
    output: Annotated[Path, typer.Option(help="Folder of the runs.", metavar="DIR")] = Path(
        "runs/sweep"
    ),
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a field for all variants.", metavar="A.B=C"),
    ] = None,
    result: Annotated[
        Path | None, typer.Option("--json", help="Also write the result there.", metavar="FILE")
    ] = None,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the table as Markdown.")
    ] = False,
    rows: Annotated[
        Path | None, typer.Option("--csv", help="Also write a row per run.", metavar="FILE")
    ] = None,
    plugins: Plugins = None,
) -> None:
    """Run what is missing of a table of methods, options and seeds, and print it.

    The same command continues where it was interrupted. DIR holds the runs, and the result as
    sweep.json, in a folder named after the first file.
    """
    from retain.sweep import table
    from retain.sweep.measure import Collector
    from retain.sweep.plan import Experiment, plan_sweep
    from retain.sweep.run import learn_sweep
    from retain.system.files import write_json, write_text

    experiment = Experiment(files, changes or (), backbone, order)
    plan = plan_sweep(experiment, variants, seeds, output, dev)
    for line in plan.warnings:
        _warn(line)
    done = Collector(plan).collect() if table_only else learn_sweep(plan, _progress(""))
    if as_markdown:
        print(table.as_markdown(done), end="")
    else:
        _wide(console).print(table.terminal_tables(done))
    if result is not None:
        write_json(result, done.model_dump(mode="json"))
    if rows is not None:
        write_text(rows, table.as_csv(done))
    for note in done.notes:
        _warn(note)
    for run in done.failed:
        reason = str(run.reason)
        _warn(reason if run.path in reason else f"{run.path}: {reason}", "error")
    if done.failed:
        raise typer.Exit(2)


@app.command()
def rollback(
    run: Run,
    task: Annotated[str, typer.Option("--to", help="The last task to keep.", metavar="TASK")],
    plugins: Plugins = None,
) -> None:
    """Delete every task learned after TASK, for good; impossible where whole models learn."""
    from retain.learner.stream import roll_back

    gone = roll_back(run, task)
    _say(f"removed {', '.join(gone)}" if gone else f"{task} is the newest task: nothing to remove")


@app.command()
def methods(plugins: Plugins = None) -> None:
    """List the methods: what each needs, its idea, and what it stores per task."""
    from retain.methods import find, list_methods

    table = Table("method", "needs", "idea", "stores per task", box=SIMPLE_HEAD)
    for name in list_methods():
        try:
            method = find(name)
        except RetainError as error:
            table.add_row(name, "", f"error: {error}", "")
            continue
        assert method is not None
        traits = method.traits
        needs = {"task name": traits.needs_task_id, "old data": traits.needs_old_data}
        words = ", ".join(need for need, needed in needs.items() if needed)
        table.add_row(name, words or "neither", traits.idea, traits.stores)
    table.caption, table.caption_justify = NEEDS, "left"
    _wide(console).print(table)


def _print_scores(folders: list[Path]) -> None:
    from retain.report import side_by_side, summarise

    console.print(side_by_side([summarise(folder) for folder in folders]))


def _say(text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _warn(text: str, kind: str = "warning") -> None:
    """One line on standard error."""
    line = f"{kind}: {' '.join(text.split())}"
    errors = Console(stderr=True, quiet=not processes.is_first())
    errors.print(line, highlight=False, markup=False, soft_wrap=True)


def _wide(console: Console) -> Console:
    """The console; where it is no terminal, one whose width cuts no line of a table."""
    return console if console.is_terminal else Console(width=WIDE, quiet=console.quiet)


def _progress(prefix: str) -> Any:
    from retain.system.progress import ConsoleProgress

    progress = ConsoleProgress(Console(stderr=True, quiet=not processes.is_first()), prefix)

    def stop(*_: object) -> None:
        progress.message("stops after this step; Ctrl-C again stops at once")
        progress.stopping = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, stop)
    return progress


def _end_output() -> None:
    """What standard output does not take is dropped: Python's own end would fail on it."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main() -> None:
    """Runs the command; a user's mistake ends with status 2 and one `error:` line.

    Ctrl-C finishes the step and saves it, twice it stops at once; either ends with status 130.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal may not know every letter
    try:
        status = app(standalone_mode=False, prog_name="retain")
        sys.stdout.flush()
        if status == INTERRUPTED:
            raise typer.Abort
    except RetainError as error:
        text = " ".join(str(error).split())
    except BrokenPipeError:  # whoever read the output has seen enough
        _end_output()
        sys.exit(1)
    except OSError as error:
        where = error.filename or "reading or writing failed"
        text = f"{where}: {error.strerror or error}; check the path, and the room there"
    except MemoryError:
        text = "not enough RAM; lower the batch sizes, or free some"
    except UnicodeError as error:
        text = f"not UTF-8 text ({error}); correct it"
    except (StoppedError, typer.Abort) as stop:  # the first Ctrl-C, or the second
        told = str(stop) or "at once"
        print(
            f"stopped {told}; to continue, give the same command (retain run with --resume)",
            file=sys.stderr,
        )
        sys.exit(INTERRUPTED)
    except Exception as error:
        usage = getattr(error, "format_message", None)  # click's own: a wrong option, a missing one
        if usage is None:
            raise
        command = getattr(getattr(error, "ctx", None), "command_path", "retain")
        text = f"{usage().rstrip('.')}; see {command} --help"
    else:
        sys.exit(status or 0)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    _end_output()
    print(f"error: {text}", file=sys.stderr)
    sys.exit(2)
