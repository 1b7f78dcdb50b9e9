"""`retain learn RUN FILE --discover`: groups are shown, asked about, and learned."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer
from rich.table import Table
from rich.text import Text

from retain.cli.shared import console, print_scores, progress_for, say, warn, widened
from retain.errors import RetainError
from retain.system import processes
from retain.system.printing import escaped

if TYPE_CHECKING:  # an import of torch takes seconds
    from retain.discovery.decision import Decision, GroupRecord

FOR_ALL = ("columns", "extract", "max_new_tokens", "metric", "train_limit", "training")
"""Fields that `--set` may give to all groups alike."""
OF_TASK = ("extract", "max_new_tokens", "metric")
"""Those that a refreshed task keeps: its tests are those of the learned one."""


def check_options(name: str | None, test: Path | None, changes: Sequence[str], yes: bool) -> None:
    """Raises RetainError for what does not go with --discover, or where nobody can answer."""
    if name is not None or test is not None:
        raise RetainError(
            "learn --discover: takes no --name and no --test, since the file has several tasks; "
            "leave them out"
        )
    for change in changes:
        if change.partition("=")[0].partition(".")[0] not in FOR_ALL:
            raise RetainError(
                f"learn --discover: --set {change}: is not for all groups alike; give one of "
                f"{', '.join(FOR_ALL)}"
            )
    if not yes and (processes.count() > 1 or not _has_terminal()):
        raise RetainError(
            "learn --discover: asks before it learns, and there is no terminal to ask; add --yes"
        )


def _has_terminal() -> bool:
    return sys.stdin.isatty()


def learn_discovered(
    run: Path,
    values: dict[str, Any],
    known: Literal["skip", "refresh", "block"],
    yes: bool,
    trust_remote_code: bool,
) -> None:
    """Groups the examples of a file, unless that is decided, and learns the groups as tasks.

    Args:
        run: the run's folder.
        values: the fields of a `TaskConfig`.
        known: what becomes of examples of a learned task.
        yes: whether to learn without asking.
        trust_remote_code: as in `Learner.load`.
    """
    from retain.discovery import decision as decisions
    from retain.experiment.config import TaskConfig
    from retain.experiment.validation import check
    from retain.learner.learner import Learner
    from retain.learner.stream import learn_tasks

    config = check(TaskConfig, values, "learn")
    path = Path(config.path)
    folder = decisions.folder_of(path)
    rows = decisions.read_mixed(config)
    decision = decisions.stored_decision(path, rows, known)
    learner = Learner.load(run, progress_for("learn"), trust_remote_code=trust_remote_code)
    if decision is None:
        decision = processes.broadcast(decisions.decide(learner, rows, known, path))
    else:
        say(f"as decided in {folder}")
    tasks = decisions.tasks_to_learn(learner, decision, config)
    show(decision)
    given = [field for field in OF_TASK if values.get(field) is not None]
    if given and decision.known == "refresh" and any(map(_is_refreshed, decision.groups)):
        say(f"groups that are learned again keep {', '.join(given)} of the learned task")
    if not tasks:
        say("nothing to learn: the groups are learned, and keep their settings")
        if learner.tasks:
            learner.finish_evaluation()
            print_scores([run])
        return
    learner.check_tasks(tasks)
    counted = f"{len(tasks)} task{'s' if len(tasks) > 1 else ''}"
    if not yes and not typer.confirm(f"Learn {counted}?"):
        say(f"nothing learned; change names in {folder}/decision.json, or delete {folder}")
        return
    learn_tasks(learner, tasks)
    print_scores([run])


def show(decision: Decision) -> None:
    """Prints the groups with three examples each, and what is doubtful about them."""
    table = Table("group", "examples", "nearest learned task", "")
    for group in decision.groups:
        near = "–" if group.cosine is None else f"{group.nearest} ({group.cosine:.2f})"
        cells = (group.name, str(group.rows), near, _fate(group))
        table.add_row(*(Text(escaped(cell)) for cell in cells))
    widened(console).print(table)
    for group in decision.groups:
        say(f"{group.name}:")
        for example in group.examples:
            say(f"  {example}")
    say(f"in no group: {decision.buffer}")
    for line in decision.unsure:
        warn(line, "unsure")


def _is_refreshed(group: GroupRecord) -> bool:
    return group.learn and group.is_known


def _fate(group: GroupRecord) -> str:
    if not group.learn:
        return "left out: learned already" if group.is_known else "left out"
    return "learned again" if group.is_known else "new"
