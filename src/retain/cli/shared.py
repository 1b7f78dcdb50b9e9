"""What the commands share: the app, arguments of several of them, and how they print."""

from __future__ import annotations

import signal
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from retain.system import processes
from retain.system.paths import expanded
from retain.system.printing import ErrorConsole, PlainConsole, escaped

WIDE = 240
"""Columns of a table that is read by other programs."""

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Teach a language model one task after another, without forgetting the earlier ones.",
)
console = PlainConsole(quiet=not processes.is_first())


def path(text: str) -> Path:
    """Reads an argument or option that is a path; its name stands in `--help`."""
    try:
        return expanded(str(text))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


Run = Annotated[Path, typer.Argument(help="The run's folder.", metavar="RUN", parser=path)]
TrustCode = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Allow the backbone's own Python code to run."),
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
        help="Import this module or .py file, which registers methods.",
        metavar="MODULE",
    ),
]
Single = Annotated[
    Path | None,
    typer.Option(
        "--single",
        help="A pertask run on the same test data, for forward transfer.",
        parser=path,
    ),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"retain {version('retain')}")
        raise typer.Exit


@app.callback()
def _always(
    shown: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None: ...


def print_scores(folders: list[Path]) -> None:
    """Prints runs' scores side by side."""
    from retain.report import side_by_side, summarise

    console.print(side_by_side([summarise(folder) for folder in folders]))


def say(text: str) -> None:
    """Prints one line as it is, with control characters escaped."""
    console.print(escaped(text), highlight=False, markup=False, soft_wrap=True)


def warn(text: str, kind: str = "warning") -> None:
    """One line on standard error."""
    line = escaped(f"{kind}: {' '.join(text.split())}")
    errors = ErrorConsole(quiet=not processes.is_first())
    errors.print(line, highlight=False, markup=False, soft_wrap=True)


def widened(console: PlainConsole) -> PlainConsole:
    """The console; where it is no terminal, one whose width cuts no line of a table."""
    return console if console.is_terminal else PlainConsole(width=WIDE, quiet=console.quiet)


def progress_for(prefix: str) -> Any:
    """A progress bar on standard error; the first Ctrl-C ends the work after the current step."""
    from retain.system.progress import ConsoleProgress

    progress = ConsoleProgress(ErrorConsole(quiet=not processes.is_first()), prefix)

    def stop(*_: object) -> None:
        progress.message("stops after this step; Ctrl-C again stops at once")
        progress.stopping = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, stop)
    return progress
