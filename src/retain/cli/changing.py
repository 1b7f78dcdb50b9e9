"""Commands on a whole run: export, rollback."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from retain.cli.shared import Plugins, Run, TrustCode, app, path, progress_for, say
from retain.errors import RetainError


@app.command()
def export(
    run: Run,
    folder: Annotated[
        Path, typer.Argument(help="An empty or new folder.", metavar="DIR", parser=path)
    ],
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
    learner = Learner.load(run, progress_for(""), trust_remote_code=trust_remote_code)
    say(write(learner, folder, weights))


@app.command()
def rollback(
    run: Run,
    task: Annotated[str, typer.Option("--to", help="The last task to keep.", metavar="TASK")],
    plugins: Plugins = None,
) -> None:
    """Permanently delete all tasks after TASK. Not available with full fine-tuning."""
    from retain.learner.upkeep import roll_back

    gone = roll_back(run, task)
    say(f"removed {', '.join(gone)}" if gone else f"{task} is the newest task: nothing to remove")
