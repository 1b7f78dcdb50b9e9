"""Which experiment several files and flags choose, and what contradicts it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retain.errors import RetainError
from retain.experiment.config import ExperimentConfig, TaskConfig, task_name
from retain.experiment.files import ExperimentFile, Settings, When
from retain.experiment.merge import merge
from retain.experiment.validation import refuse_unknown_fields
from retain.methods import find, is_installed, list_methods
from retain.training.config import TrainingConfig

TUNES = ("full", "lora")
NAMED = ("backbone", "method")
"""Sections with a name, which says what their options are for."""

Files = Mapping[Path, ExperimentFile]


@dataclass(frozen=True)
class Choice:
    """Which experiment it is, by names; None where nothing says it.

    Attributes:
        tune: what the method trains, `full` or `lora`. Its options say so, and these are known once
            the files are merged; until then it is None, which no `tune` in `when` matches.
        order: one of the stream's `orders`; None for an order of one's own.
        backbones: what the short names of backbones stand for.
    """

    stream: str | None
    backbone: Any
    method: Any
    order: str | None
    backbones: Mapping[str, Mapping[str, Any]]
    tune: str | None = None

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
        wanted = [int(n) if n.strip().isdecimal() and len(n) < 9 else n for n in wanted.split(",")]
    for same, places in orders.items():
        if wanted == places or (wanted == "reversed" and places == sorted(places, reverse=True)):
            return same, places
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
    """Raises RetainError for a name or a field that nothing has.

    This is of all cases, also of those that do not match: such a case would never count. A recipe
    that names a method is for that method only.
    """
    orders = _orders(read)
    for path, file in read.items():
        known: dict[str, Sequence[str]] = {"method": list_methods(), "tune": TUNES}
        known |= {"backbone": list(file.backbones)} if file.backbones else {}
        for number, when in enumerate(file.covers):
            _refuse_names(path, f"covers.{number}", when, known)
        covered = {field: _covered(file, field) for field in When.model_fields}
        known |= {field: names for field, names in covered.items() if names}
        known |= {"stream": [file.stream]} if file.stream else {}
        for number, case in enumerate(file.cases):
            # A case for several streams may name orders of which another stream has some.
            of_stream = case.when.stream == [choice.stream] or (
                case.when.stream is None and isinstance(file.tasks, list)
            )
            of_case = known | ({"order": list(orders)} if of_stream else {})
            _refuse_names(path, f"cases.{number}.when", case.when, of_case)
            _refuse_fields(path, f"cases.{number}.", case, case.when.method or ())
        method = (file.method or {}).get("name")
        _refuse_fields(path, "", file, [method] if method in list_methods() else ())
        if file.recipe and method is not None and method != choice.method:
            raise RetainError(
                f"{path}: the recipe is of method '{method}' and '{choice.method}' is chosen; "
                "leave the file out, or choose its method"
            )


def refuse_uncovered(read: Files, choice: Choice) -> None:
    """Raises RetainError for what a recipe does not cover, as far as it is known."""
    for path, file in read.items():
        if file.covers:
            _refuse_uncovered(path, file, choice)


def _covered(file: ExperimentFile, field: str) -> list[str]:
    """The names of all that a recipe covers; empty where something that it covers gives none."""
    names = [getattr(when, field) for when in file.covers]
    return [] if None in names else list(dict.fromkeys(name for some in names for name in some))


def _refuse_names(path: Path, place: str, when: When, known: Mapping[str, Sequence[str]]) -> None:
    for field, names in known.items():
        for name in getattr(when, field) or ():
            if name not in names:
                raise RetainError(
                    f"{path}: field '{place}.{field}': no {field} '{name}'; "
                    + (f"choose one of {', '.join(names)}" if names else "there is none")
                )


def _refuse_fields(path: Path, prefix: str, settings: Settings, methods: Iterable[str]) -> None:
    """Raises RetainError for a field that no section has; of `method`, none of these methods."""
    sections = {
        field: getattr(settings, field)
        for field in settings.model_fields_set & {*Settings.model_fields}
    }
    if isinstance(tasks := sections.get("tasks"), dict):
        for name, of_task in tasks.items():
            refuse_unknown_fields(TaskConfig, of_task, str(path), f"{prefix}tasks.{name}.")
        del sections["tasks"]
    first = sections.pop("first_training", {})
    refuse_unknown_fields(TrainingConfig, first, str(path), f"{prefix}first_training.")
    refuse_unknown_fields(ExperimentConfig, sections, str(path), prefix)
    options = {key: value for key, value in (settings.method or {}).items() if key != "name"}
    for name in methods if options else ():
        # A package's method is imported only where it is chosen.
        if not is_installed(name) and (method := find(name)) is not None:
            refuse_unknown_fields(method.Config, options, str(path), f"{prefix}method.")


def _refuse_uncovered(path: Path, file: ExperimentFile, choice: Choice) -> None:
    left: Sequence[When] = file.covers
    known = ("stream", "backbone", "method", "order", *(["tune"] if choice.tune else []))
    for field in known:
        before, left = left, [when for when in left if choice.matches(when, [field])]
        if left:
            continue
        names = dict.fromkeys(n for when in before for n in getattr(when, field) or ())
        chosen = getattr(choice, field)
        how = "name its file before" if field == "stream" else f"choose one with --{field}"
        a = "an" if field == "order" else "a"
        raise RetainError(
            f"{path}: the recipe "
            + (f"'{file.recipe}' " if file.recipe else "")
            + (f"needs {a} {field}; {how}" if chosen is None else f"has no {field} '{chosen}'")
            + (" here; it has " if chosen else ": ")
            + ", ".join(names)
        )
