"""Commands that read runs and write no model: report, inspect, compare, check, verify, methods."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from retain.cli.shared import (
    Plugins,
    Run,
    Single,
    app,
    console,
    path,
    print_scores,
    say,
    warn,
    widened,
)
from retain.errors import RetainError

NEEDS = "task name: needed at inference; old data: training reads examples of earlier tasks again"


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(help="One run, or several to compare.", parser=path)
    ],
    single: Single = None,
    output: Annotated[
        Path | None,
        typer.Option(help="The page to write; for one run RUN/report.html.", parser=path),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Also write the score matrices as a PNG.", parser=path)
    ] = None,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the tables as Markdown.")
    ] = False,
    plugins: Plugins = None,
) -> None:
    """Print a run's scores and write one self-contained HTML page about it."""
    from retain.report import markdown, matrices_png, render, summarise
    from retain.runs import outputs, results
    from retain.system.files import write_text

    opened = [results.open_run(folder) for folder in runs]
    if output is None and len(runs) > 1:
        raise RetainError("report: several runs need --output FILE for their one page")
    page = output or runs[0] / "report.html"
    outputs.check_outputs((page, outputs.PAGE), (picture, outputs.PICTURE))
    if single is not None:
        for run in opened:
            given = results.single_scores(run, single)
            with run.locked():
                results.write_scores(run, given)
    summaries = [summarise(folder) for folder in runs]
    write_text(page, render(summaries))
    if picture is not None:
        matrices_png(summaries, picture)
    if as_markdown:  # nothing else, so that it can be piped
        print(markdown(summaries), end="")
        return
    print_scores(runs)
    say(f"wrote {page}")


@app.command()
def inspect(
    run: Run,
    picture: Annotated[
        Path | None, typer.Option(help="Also write the pictures as a PNG.", parser=path)
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="Task to show in detail (AM-LoRA: by layer); default: the newest."),
    ] = None,
    plugins: Plugins = None,
) -> None:
    """Show what the run's method attends to, such as blocks or heads, and its pseudo-samples."""
    from retain.report.draw_sections import require_sections, section_tables, write_png
    from retain.runs import outputs
    from retain.runs.results import open_run

    outputs.check_outputs((picture, outputs.PICTURE))
    sections = require_sections(open_run(run), task)
    if picture is not None:
        write_png(sections, picture)
    for section in sections:
        for table in section_tables(section):
            console.print(table)
        for sentence in section.sentences:
            say(sentence)
    if picture is not None:
        say(f"wrote {picture}")


@app.command()
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Finished runs; the first run's method is the base.", parser=path),
    ],
    table: Annotated[
        Path | None,
        typer.Option("--csv", help="Also write a CSV with one row per run.", parser=path),
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option("--html", help="Also write the tables as an HTML page.", parser=path),
    ] = None,
    plugins: Plugins = None,
) -> None:
    """Compare methods across seeds and task orders, with paired confidence intervals."""
    from retain.report import compare as comparison
    from retain.runs import outputs
    from retain.runs.compacted import compaction_note
    from retain.runs.results import open_run
    from retain.system.files import write_text

    outputs.check_outputs((table, outputs.COMPARE_CSV), (page, outputs.PAGE))
    entries = [comparison.read_entry(folder) for folder in dict.fromkeys(runs)]
    notes = (compaction_note(open_run(entry.folder)) for entry in entries)
    for line in (*comparison.warnings(entries), *filter(None, notes)):
        warn(line)
    console.print(comparison.tables(entries))
    for target, render in ((table, comparison.as_csv), (page, comparison.as_html)):
        if target is not None:
            write_text(target, render(entries))
            say(f"wrote {target}")


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
    from retain.runs import results
    from retain.runs.compacted import points_lost
    from retain.runs.labels import score_text

    opened = results.open_run(run)
    names = results.final_scores(opened).tasks
    lost = list(zip(names, points_lost(opened), strict=False))
    worse = [(name, drop) for name, drop in lost if drop is not None and drop.points > points]
    for name, drop in worse:
        say(f"{name}: lost {score_text(drop.points, drop.error)} points since it was learned")
    if worse:
        raise typer.Exit(1)
    say(f"no task lost more than {points:g} points")


@app.command()
def verify(
    run: Run,
    plugins: Plugins = None,
) -> None:
    """Read and check every file of a run."""
    from retain.learner.upkeep import verify as verify_run
    from retain.runs.results import open_run

    opened = open_run(run)
    lines = verify_run(opened)
    for line in lines:
        say(line)
    if lines:
        count = "1 file" if len(lines) == 1 else f"{len(lines)} files"
        raise RetainError(f"{run}: {count} failed verification (listed above)")
    say(f"{len(opened.files)} files verified: all as they were written")


@app.command()
def methods(plugins: Plugins = None) -> None:
    """List the methods: what each needs, its idea, and what it stores per task."""
    from retain.cli.known_methods import known_methods

    table = Table("method", "needs", "idea", "stores per task", box=SIMPLE_HEAD)
    for name, listed in known_methods().items():
        table.add_row(name, *listed)
    table.caption, table.caption_justify = NEEDS, "left"
    widened(console).print(table)
