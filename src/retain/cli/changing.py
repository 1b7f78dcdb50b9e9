"""Commands on a whole run: export, compact, rollback."""

from __future__ import annotations

import shlex
from pathlib import Path
from statistics import fmean
from typing import Annotated

import typer

from retain.cli.shared import Plugins, Run, TrustCode, app, path, progress_for, say
from retain.errors import RetainError
from retain.system import processes


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
    from retain.export import check_target
    from retain.export import export as write
    from retain.learner.learned_model import LearnedModel

    processes.refuse_several("export")
    if task is not None and mixture:
        raise RetainError("export: --task and --mixture exclude each other; give one of them")
    weights = {task: 1.0} if task is not None else None
    for part in mixture or ():
        name, _, value = part.rpartition("=")
        if name in (weights or {}):
            raise RetainError(f"--mixture {part}: '{name}' has a weight already; give it one")
        try:
            weights = {**(weights or {}), name: float(value)}
        except ValueError:
            raise RetainError(f"--mixture {part}: expected TASK=WEIGHT; correct it") from None
    check_target(folder)  # before a model is loaded for minutes
    learned = LearnedModel.load(run, progress_for(""), trust_remote_code=trust_remote_code)
    say(write(learned, folder, weights))


@app.command()
def compact(
    run: Run,
    blocks: Annotated[int, typer.Option("--blocks", help="Blocks to keep.", metavar="N", min=1)],
    max_loss: Annotated[
        float, typer.Option("--max-loss", help="Points of AP that may be lost.", min=0)
    ] = 0.5,
    trust_remote_code: TrustCode = False,
    plugins: Plugins = None,
) -> None:
    """Merge blocks of look-alike tasks until N are left; routing over tasks stays. For sapt."""
    from retain.learner.compact import compact as merge
    from retain.learner.learned_model import LearnedModel

    learned = LearnedModel.load(run, progress_for(""), trust_remote_code=trust_remote_code)
    compacted = merge(learned, blocks, max_loss)
    if compacted is None:
        say(f"{run}: has no more than {blocks} blocks: nothing to merge")
        return
    scores = zip(learned.tasks, compacted.sharing, compacted.before, compacted.after, strict=True)
    for task, block, before, after in scores:
        say(f"{task.name}: block {block + 1}, score {before:.1f} before, {after:.1f} after")
    before, after = fmean(compacted.before), fmean(compacted.after)
    say(f"AP {before:.1f} before, {after:.1f} after, with blocks: {blocks}")
    undo = f"retain rollback {shlex.quote(str(run))} --to {shlex.quote(learned.tasks[-1].name)}"
    say(f"to undo it: {undo}")


@app.command()
def rollback(
    run: Run,
    task: Annotated[str, typer.Option("--to", help="The last task to keep.", metavar="TASK")],
    plugins: Plugins = None,
) -> None:
    """Permanently delete what came after TASK: tasks and compactions. Not with full fine-tuning."""
    from retain.learner.upkeep import roll_back

    gone = roll_back(run, task)
    say(f"removed {', '.join(gone)}" if gone else f"{task} is the newest task: nothing to remove")
