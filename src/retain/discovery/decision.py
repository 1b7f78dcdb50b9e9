"""What was decided about a file of examples without task names: written down, learned, resumed.

`FILE.discovered/` beside the file has `decision.json`, the examples of each group as a file that
can be learned, and those of the buffer. Once it is there it is what counts: nothing is decided
again, so a killed `retain learn --discover` goes on with the same tasks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from retain.discovery.grouping import (
    BUFFER,
    FEWEST,
    SAME,
    Grouping,
    Space,
    group_texts,
    text_of,
)
from retain.discovery.language import ENGLISH, english_share
from retain.discovery.naming import free_name, names_of
from retain.errors import RetainError
from retain.experiment.config import TaskConfig
from retain.experiment.read_tasks import read_task, with_defaults
from retain.learner.learner import Learner
from retain.runs import results
from retain.runs.directory import slug
from retain.runs.outputs import check_folder
from retain.runs.records import Record, read_record
from retain.system.files import write_json, write_jsonl
from retain.tasks import Example, Task
from retain.tasks.readers import read_rows

Known = Literal["skip", "refresh", "block"]
"""What becomes of examples of a learned task: left out, learned again beside the task's own tests,
or learned as a task of its own. The latter two are one more task of the run, `<task>-2`."""

DECISION = "decision.json"
REST = "buffer.jsonl"
NEAR = 0.5
"""Cosine of two means from which they may be of one task."""
SCATTERED = 0.6
"""Median cosine with its mean below which a group may be of several tasks."""
SMALL = 20
"""Examples below which a group's score says little."""
MUCH = 0.1
"""Share of all examples from which the buffer is worth a line."""
SHOWN = 110
"""Characters of an example that are shown."""


class GroupRecord(Record):
    """One group. `name` and `learn` may be changed by hand before it is learned.

    `nearest` is the learned task whose mean is nearest, with its `cosine`; `is_known` says that
    the two count as one task. `examples` are the nearest to the mean, a middle one, the farthest.
    """

    name: str
    learn: bool
    file: str
    rows: int
    nearest: str | None
    cosine: float | None
    is_known: bool
    examples: list[str]


class Decision(Record):
    """`decision.json`. `source` is the sha256 of all examples, `learned` the run's tasks then."""

    source: str
    known: Known
    learned: list[str]
    groups: list[GroupRecord]
    buffer: int
    unsure: list[str]


def folder_of(path: Path) -> Path:
    """Returns the folder of what is decided about a file.

    Raises:
        RetainError: if the path has no name.
    """
    if not path.name:
        raise RetainError(f"{path}: has no name of its own; name a file")
    return path.with_name(f"{path.stem}.discovered")


def read_mixed(config: TaskConfig) -> list[Example]:
    """Reads a file of examples without task names.

    Raises:
        RetainError: as `read_rows`, or if no group can be found in so few.
    """
    path = Path(config.path)
    rows = read_rows(path, {str(key): name for key, name in with_defaults(config).columns.items()})
    check_folder(folder_of(path))
    if len(rows) < FEWEST:
        raise RetainError(
            f"{path}: has {len(rows)} examples, and a group has {FEWEST} or more; add some, or "
            "learn them as one task without --discover"
        )
    return rows


def decide(learner: Learner, rows: Sequence[Example], known: Known, path: Path) -> Decision:
    """Groups examples, and writes the groups' files and, last, the decision.

    Learned tasks are told by their test examples, which are never learned from.
    """
    folder, learned = folder_of(path), [task.name for task in learner.tasks]
    tests = [[text_of(example) for example in task.test] for task in learner.tasks]
    grouping = group_texts(Space(learner.backbone, tests), [text_of(row) for row in rows])
    numbers: list[list[int]] = [[] for _ in range(len(grouping.near))]
    rest: list[int] = []
    for i, group in enumerate(grouping.group.tolist()):
        (rest if group == BUFFER else numbers[group]).append(i)
    examples = [[rows[i] for i in members] for members in numbers]
    names = names_of(examples, learned)
    groups: list[GroupRecord] = []
    for number, members in enumerate(numbers):
        cosine, nearest = (None, None)
        if learned:
            best = grouping.known[number].max(0)
            cosine, nearest = float(best.values), learned[int(best.indices)]
        is_known = cosine is not None and cosine >= SAME
        name = names[number]
        if is_known and nearest is not None:
            name = free_name(nearest, (*learned, *(group.name for group in groups)))
        by_fit = sorted(members, key=lambda i: (-float(grouping.fit[i]), text_of(rows[i])))
        groups.append(
            GroupRecord(
                name=name,
                learn=not is_known or known != "skip",
                file=f"{number + 1:02d}-{slug(name)}.jsonl",
                rows=len(members),
                nearest=nearest,
                cosine=None if cosine is None else round(cosine, 3),
                is_known=is_known,
                examples=[_excerpt(rows[by_fit[i]]) for i in (0, len(by_fit) // 2, -1)],
            )
        )
    decision = Decision(
        source=source_of(rows),
        known=known,
        learned=learned,
        groups=groups,
        buffer=len(rest),
        unsure=_doubts(groups, grouping, examples, len(rows)),
    )
    for group, members in zip(groups, numbers, strict=True):
        write_jsonl(folder / group.file, (rows[i].as_row() for i in members))
    write_jsonl(folder / REST, (rows[i].as_row() for i in rest))
    write_json(folder / DECISION, decision.model_dump())
    return decision


def source_of(rows: Sequence[Example]) -> str:
    """Returns a sha256 of examples in their order."""
    return hashlib.sha256(json.dumps([row.as_row() for row in rows]).encode()).hexdigest()


def stored_decision(path: Path, rows: Sequence[Example], known: Known) -> Decision | None:
    """Reads what was decided about a file; None if nothing was.

    Raises:
        RetainError: when it was about other examples or under another `known`, or has been changed
            to what is none.
    """
    place = folder_of(path) / DECISION
    if not place.exists():
        return None
    decision = read_record(Decision, place)
    anew = f"delete {folder_of(path)} to decide anew"
    if decision.source != source_of(rows):
        raise RetainError(
            f"{place}: was decided about other examples; {anew}, or restore those of {path}"
        )
    if decision.known != known:
        given = f"--known {decision.known}"
        raise RetainError(f"{place}: was decided with {given}; {anew}, or give {given} again")
    names = [group.name for group in decision.groups if group.learn]
    if not all(name.strip() for name in names):
        raise RetainError(f"{place}: a group has no name; give it one")
    if twice := [name for name in names if names.count(name) > 1]:
        raise RetainError(f"{place}: two groups are named '{twice[0]}'; give one another name")
    return decision


def tasks_to_learn(learner: Learner, decision: Decision, config: TaskConfig) -> list[Task]:
    """Returns the tasks of a decision that the run has not learned, in order.

    Args:
        learner: the run.
        decision: the groups.
        config: the file, with the fields that all groups get.

    Raises:
        RetainError: when the run has other tasks than then, or one of them was learned from other
            examples than its file now has.
    """
    folder = folder_of(Path(config.path))
    names = [task.name for task in learner.tasks]
    groups = [group for group in decision.groups if group.learn]
    begun = names[len(decision.learned) :]
    if names[: len(decision.learned)] != decision.learned or begun != [
        group.name for group in groups[: len(begun)]
    ]:
        first = ", ".join([*decision.learned, *(group.name for group in groups)])
        raise RetainError(
            f"{folder / DECISION}: is for a run that learns {first}, and {learner.run.path} has "
            f"learned {', '.join(names)}; give its groups these names, or delete {folder} to "
            "decide anew"
        )
    tasks = [_task(learner, decision, group, config, folder) for group in groups]
    for number, task in enumerate(tasks[: len(begun)], start=len(decision.learned)):
        if not results.same_task(learner.run, number, task):
            raise RetainError(
                f"{folder}: the run has learned '{task.name}' from other examples than its file "
                "has now; restore the file, or give the same --set again"
            )
    return tasks[len(begun) :]


def _task(
    learner: Learner, decision: Decision, group: GroupRecord, config: TaskConfig, folder: Path
) -> Task:
    """Reads a group's file as a task; one that refreshes a task is scored on the task's tests."""
    path = folder / group.file
    if not group.is_known or decision.known != "refresh":
        here = {"path": str(path), "name": group.name, "columns": {}}
        return read_task(config.model_copy(update=here))
    old = next(old for old in learner.tasks if old.name == group.nearest)
    tests = {example.prompt for example in old.test}
    rows = [row for row in read_rows(path) if row.prompt not in tests]
    if len(rows) < 2:
        raise RetainError(
            f"{path}: has tests of '{old.name}' alone, which are not learned; set 'learn' of "
            f"'{group.name}' to false in {folder / DECISION}"
        )
    return Task.split(
        group.name,
        rows,
        old.test,
        old.metric,
        old.extract,
        config.train_limit,
        config.model_dump()["training"],
        old.max_new_tokens,
    )


def _doubts(
    groups: Sequence[GroupRecord],
    grouping: Grouping,
    members: Sequence[Sequence[Example]],
    count: int,
) -> list[str]:
    """Returns a line for each thing that a reader should look at before it is learned.

    Args:
        groups, grouping: what was decided, and by which cosines.
        members: the examples of each group.
        count: of all examples.
    """
    lines = []
    for number, group in enumerate(groups):
        fit = grouping.fit[grouping.group == number].median()
        share = english_share([text_of(row) for row in members[number]])
        if share < ENGLISH:
            doubt = f", or another than {group.nearest}" if group.is_known else ""
            lines.append(
                f"{group.name} has few common English words ({share:.0%} of all): if it is in "
                f"another language it may be several tasks{doubt}, which are not told apart there"
            )
        if group.rows < SMALL and group.learn:
            lines.append(
                f"{group.name} has only {group.rows} examples, a fifth of them for its score"
            )
        if fit < SCATTERED and group.learn:
            lines.append(f"{group.name} is scattered (cosine {fit:.2f}): it may be several tasks")
        if group.cosine is not None and not group.is_known and group.cosine >= NEAR:
            lines.append(
                f"{group.name} is near the learned task {group.nearest} "
                f"({group.cosine:.2f}): it may be the same"
            )
        for other in range(number):
            if grouping.near[number, other] >= NEAR:
                lines.append(
                    f"{groups[other].name} and {group.name} are near "
                    f"({grouping.near[number, other]:.2f}): they may be one task"
                )
    rest = count - sum(map(len, members))
    if rest >= MUCH * count:
        lines.append(
            f"{rest} of {count} examples match no group: tasks may be missing; they are in {REST}"
        )
    return lines


def _excerpt(example: Example) -> str:
    """An example on one line; of a long prompt its beginning and its end."""
    text, answer = (" ".join(t.split()) for t in (example.prompt, example.references[0]))
    if len(text) > SHOWN:
        text = f"{text[: SHOWN // 2]} … {text[-SHOWN // 2 :]}"
    return f"{text} → {answer[: SHOWN // 2]}"
