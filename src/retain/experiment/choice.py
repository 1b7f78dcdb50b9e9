"""Which experiment several files and flags choose, and what contradicts it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retain.errors import RetainError
from retain.experiment.config import task_name
from retain.experiment.files import ExperimentFile, When
from retain.experiment.merge import merge
from retain.methods import list_methods

NAMED = ("backbone", "method")
"""Sections with a name, which says what their options are for."""

Files = Mapping[Path, ExperimentFile]


@dataclass(frozen=True)
class Choice:
    """Which experiment it is, by names; None where nothing says it.

    Attributes:
        order: one of the stream's `orders`; None for an order of one's own.
        backbones: what the short names of backbones stand for.
    """

    stream: str | None
    backbone: Any
    method: Any
    order: str | None
    backbones: Mapping[str, Mapping[str, Any]]

    def matches(self, when: When, fields: Iterable[str] = tuple(When.model_fields)) -> bool:
        """Whether `when` names what is chosen, in each of these fields that it has."""
        return all(
            names is None or any(self.same(field, name) for name in names)
            for field in fields
            for names in [getattr(when, field)]
        )

    def same(self, field: str, name: Any) -> bool:
        """Whether a name is of what is chosen; a backbone has a short and a full one."""
        chosen = getattr(self, field)
        if field == "backbone" and isinstance(name, str) and isinstance(chosen, str):
            name, chosen = (self.backbones.get(n, {}).get("name", n) for n in (name, chosen))
        return bool(name == chosen)


def choose(read: Files, flags: Mapping[str, Any]) -> tuple[Choice, Any]:
    """The experiment that is chosen, and its `order` as `ExperimentConfig` takes it.

    Args:
        read: the files; a later one's names count.
        flags: `backbone`, `method` and `order`, where they are given; they count over the files.

    Raises:
        RetainError: for an order that there is not, or one that is not of the stream's tasks.
    """
    named: dict[str, Any] = dict.fromkeys(NAMED)
    backbones: dict[str, Any] = {}
    wanted: Any = None
    for file in read.values():
        for field in NAMED:
            named[field] = (getattr(file, field) or {}).get("name", named[field])
        backbones = merge(backbones, file.backbones)
        wanted = wanted if file.order is None else file.order
    named |= {field: flags[field] for field in NAMED if field in flags}
    order, places = _order(flags.get("order", wanted), _orders(read))
    choice = Choice(
        stream=next((file.stream for file in read.values() if file.stream), None),
        backbone=named["backbone"],
        method=named["method"],
        order=order,
        backbones=backbones,
    )
    return choice, places


def _orders(read: Files) -> dict[str, list[int]]:
    """The stream's orders by name, each as the numbers of its tasks from 1."""
    tasks = names_of(listed_tasks(read))
    orders = {}
    for path, file in read.items():
        for name, listed in file.orders.items():
            if sorted(listed) != sorted(tasks):
                wrong = [*sorted({*listed} ^ {*tasks}), *(n for n in listed if listed.count(n) > 1)]
                raise RetainError(
                    f"{path}: field 'orders.{name}': Input should have each task of the stream "
                    f"once; see '{wrong[0]}'"
                )
            orders[name] = [tasks.index(task) + 1 for task in listed]
    return orders


def _order(wanted: Any, orders: Mapping[str, list[int]]) -> tuple[str | None, Any]:
    """The name of the order, where it is one of the stream's; and what stands for it."""
    name = next(iter(orders), None) if wanted is None else str(wanted)
    if name is not None and name in orders:
        return name, orders[name]
    if isinstance(wanted, str) and "," in wanted:
        return None, [int(n) if n.strip().isdigit() else n for n in wanted.split(",")]
    if orders and not isinstance(wanted, list) and wanted != "reversed":
        raise RetainError(
            f"order: the stream has no order '{wanted}'; choose one of {', '.join(orders)}, "
            "reversed, or a list such as 2,1,3"
        )
    return None, wanted


def listed_tasks(read: Files) -> list[Any]:
    """The tasks of the one file that lists them."""
    return next((file.tasks for file in read.values() if isinstance(file.tasks, list)), [])


def names_of(tasks: Sequence[Any]) -> list[str]:
    """The tasks' names, before they are checked."""
    return [
        str(task.get("name") or task_name(str(task.get("path")), task.get("reader", "file")))
        if isinstance(task, Mapping)
        else ""
        for task in tasks
    ]


def refuse_contradictions(read: Files) -> None:
    """Raises RetainError for two files of which one has to be left out, or comes too early."""
    for field in ("stream", "recipe", "orders", "tasks"):
        paths = [
            path
            for path, file in read.items()
            if (value := getattr(file, field)) and (field != "tasks" or isinstance(value, list))
        ]
        if len(paths) > 1:
            raise RetainError(
                f"{paths[0]} and {paths[1]}: both have '{field}'; leave one of the two files out"
            )
    recipe = None
    for path, file in read.items():
        if recipe is not None and isinstance(file.tasks, list):
            raise RetainError(
                f"{path}: its settings would override those of the recipe {recipe}; name it first"
            )
        recipe = path if file.recipe else recipe


def refuse_unknown(read: Files, choice: Choice) -> None:
    """Raises RetainError for a name in a recipe that nothing has, or what a recipe does not cover.

    A recipe that names a method is for that method only.
    """
    for path, file in read.items():
        places = [(f"covers.{i}", when) for i, when in enumerate(file.covers)]
        places += [(f"cases.{i}.when", case.when) for i, case in enumerate(file.cases)]
        known = {"method": list_methods(), "backbone": list(file.backbones)}
        for place, when in places:
            for field, names in known.items():
                for name in getattr(when, field) or ():
                    if names and name not in names:
                        raise RetainError(
                            f"{path}: field '{place}.{field}': no {field} '{name}'; "
                            f"choose one of {', '.join(names)}"
                        )
        method = (file.method or {}).get("name")
        if file.recipe and method is not None and method != choice.method:
            raise RetainError(
                f"{path}: the recipe is of method '{method}' and '{choice.method}' is chosen; "
                "leave the file out, or choose its method"
            )
        if file.covers:
            _refuse_uncovered(path, file, choice)


def _refuse_uncovered(path: Path, file: ExperimentFile, choice: Choice) -> None:
    left: Sequence[When] = file.covers
    for field in ("stream", "backbone", "method"):
        before, left = left, [when for when in left if choice.matches(when, [field])]
        if left:
            continue
        names = dict.fromkeys(n for when in before for n in getattr(when, field) or ())
        chosen = getattr(choice, field)
        how = "name its file before" if field == "stream" else f"choose one with --{field}"
        raise RetainError(
            f"{path}: the recipe '{file.recipe}' "
            + (f"needs a {field}; {how}" if chosen is None else f"has no {field} '{chosen}'")
            + (" here; it has " if chosen else ": ")
            + ", ".join(names)
        )
