"""An experiment composed of files and changes: a stream, a recipe, one's own settings.

Files merge from left to right, and the cases of a file that match over the file itself; then come
the changes. What matches depends on the stream, order, backbone and method that are chosen, so
these are found first. Cases with `tune` are for what the method trains, which only its merged
options say: so all is merged without them, and then again with those that match.

Options beside the name of a method or a backbone are for that one, and fall away when another is
chosen. Options without a name are for whichever is chosen.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from retain.errors import RetainError
from retain.experiment.choice import (
    NAMED,
    Choice,
    Files,
    choose,
    listed_tasks,
    names_of,
    refuse_contradictions,
    refuse_uncovered,
    refuse_unknown,
)
from retain.experiment.config import ExperimentConfig, check_method, resolved
from retain.experiment.files import Settings, read_file
from retain.experiment.merge import leaves, merge
from retain.experiment.validation import check, set_field
from retain.methods import is_loaded, load_plugins
from retain.runs.manifest import MANIFEST
from retain.system.yaml_text import parse_yaml

EVERY = "*"
"""Among settings by task name: those for all tasks."""


def read_experiment(
    files: Path | Iterable[Path],
    changes: Iterable[str] = (),
    *,
    method: str | None = None,
    backbone: str | None = None,
    order: str | None = None,
) -> ExperimentConfig:
    """Reads experiment files, merges them and applies changes.

    Args:
        files: merged from left to right; a stream comes before a recipe.
        changes: `a.b=c`, over all files. A name for `method` or `backbone`, and an `order`, do what
            these arguments do.
        method: its name, instead of the files'.
        backbone: its name, or a short one of the files' `backbones`.
        order: one of the stream's `orders`, a list such as `2,1,3`, or `reversed`.

    Raises:
        RetainError: naming the file and the line or field, or two files that contradict each other.
    """
    paths = [files] if isinstance(files, Path) else list(files)
    for number, path in enumerate(paths):
        if any(os.path.realpath(path) == os.path.realpath(other) for other in paths[:number]):
            raise RetainError(f"{path}: is named twice; name each file once, the lowest first")
    read = {path: read_file(path) for path in paths}
    refuse_contradictions(read)
    for path, file in read.items():
        _load_plugins(file.plugins, path)
    flags = {"method": method, "backbone": backbone, "order": order}
    names, settings = _split(changes)
    given = {field: value for field, value in flags.items() if value is not None}
    choice, places = choose(read, {**given, **names})
    refuse_unknown(read, choice)
    refuse_uncovered(read, choice)
    # Cases with `tune` match the second time only; they cannot set `method.tune`, so it stays.
    _, tune = _composed(read, choice, places, settings)
    choice = replace(choice, tune=tune)
    refuse_uncovered(read, choice)
    return _composed(read, choice, places, settings)[0]


def _composed(
    read: Files, choice: Choice, places: Any, settings: Sequence[str]
) -> tuple[ExperimentConfig, str]:
    """The experiment, checked, and what its method trains: `full` or `lora`."""
    values, sources = _merged(read, choice, places)
    if plugins := list(dict.fromkeys(name for file in read.values() for name in file.plugins)):
        values["plugins"] = plugins
    if places is not None:
        values["order"] = places
    for change in settings:
        set_field(values, change)
        field = change.partition("=")[0]
        fields = [field]
        if field.startswith(f"tasks.{EVERY}."):
            fields = [field.replace(EVERY, str(i), 1) for i in range(len(values["tasks"]))]
        sources |= dict.fromkeys(fields, f"--set {change}")
    _expand_backbone(values, choice)

    def where(field: str) -> str:
        inside = {s for key, s in sources.items() if f"{key}.".startswith(f"{field}.")}
        around = {s for key, s in sources.items() if field.startswith(f"{key}.")}
        known = inside or around
        return known.pop() if len(known) == 1 else " + ".join(map(str, read))

    experiment = check(ExperimentConfig, values, where)
    of_files = {plugin for file in read.values() for plugin in file.plugins}
    _load_plugins([p for p in experiment.plugins if p not in of_files], next(iter(read)))
    method, options = check_method(experiment.method, where)
    return experiment, "full" if method.trains_backbone(options) else "lora"


def as_yaml(experiment: ExperimentConfig) -> str:
    """The experiment as one file, with every option spelled out."""
    values = resolved(experiment).model_dump(mode="json")
    values["tasks"] = [
        {key: value for key, value in task.items() if value not in (None, {})}
        for task in values["tasks"]
    ]
    values = {key: value for key, value in values.items() if value is not None}
    text: str = yaml.safe_dump(
        values, default_flow_style=None, sort_keys=False, width=100, allow_unicode=True
    )
    return text


def _load_plugins(plugins: Sequence[str], path: Path) -> None:
    """Imports the plugins that a file names, but none that lies in a run's folder.

    A run's `config.yaml` lists its plugins, and a run may come from elsewhere.
    """
    if (path.parent / MANIFEST).exists():
        for plugin in plugins:
            if not is_loaded(plugin):
                raise RetainError(
                    f"{path}: is in a run's folder, from which no plugin is imported; if you trust "
                    f"'{plugin}', add --plugin with the module or the path of its file"
                )
        return
    load_plugins(plugins, path.parent)


def _split(changes: Iterable[str]) -> tuple[dict[str, Any], list[str]]:
    """What changes choose by a name, and the changes that set something.

    A whole section, such as `method={name: sapt, rank: 4}`, does both.
    """
    names: dict[str, Any] = {}
    settings = []
    for change in changes:
        key, _, text = change.partition("=")
        field = key.removesuffix(".name")
        try:
            value = parse_yaml(text) if field in NAMED or key == "order" else None
        except yaml.YAMLError:
            value = None  # refused as any other setting
        if value is not None and (key == "order" or isinstance(value, str)):
            names[field] = value
        else:
            settings.append(change)
        if isinstance(value, Mapping) and "name" in value and key == field:
            names[field] = value["name"]
    return names, settings


def _merged(read: Files, choice: Choice, places: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """The files' settings, and from which file each is, by field.

    `places` are the numbers of the tasks in their order, `reversed`, or None for the listed order.
    """
    tasks = listed_tasks(read)
    first: dict[str, Any] = {}
    first_sources: dict[str, str] = {}
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for path, layer in _layers(read, choice):
        of_tasks = layer.pop("tasks", {})
        of_first = layer.pop("first_training", {})
        first = merge(first, of_first)
        first_sources |= dict.fromkeys(of_first, str(path))
        if isinstance(of_tasks, list):
            sources["tasks"] = str(path)
        else:
            tasks = _with_settings(tasks, of_tasks, path)
            for number, name in enumerate(names_of(tasks)):
                own = merge(of_tasks.get(EVERY, {}), of_tasks.get(name, {}))
                fields = leaves({f"tasks.{number}": own}) if own else ()
                sources |= dict.fromkeys(fields, str(path))
        values = merge(values, layer)
        sources |= dict.fromkeys(leaves(layer), str(path))
    for field in NAMED:
        name = getattr(choice, field)
        if name is not None:
            values[field] = {**(values.get(field) or {}), "name": name}
    if "tasks" in sources:
        learned_first = _learned_first(tasks, places)
        place = f"tasks.{learned_first}.training"
        sources = {f"{place}.{key}": path for key, path in first_sources.items()} | sources
        values["tasks"] = [
            merge({"training": first}, task)
            if first and number == learned_first and isinstance(task, Mapping)
            else task
            for number, task in enumerate(tasks)
        ]
    return values, sources


def _layers(read: Files, choice: Choice) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Each file's settings and those of its cases that match, the lowest first."""
    fields = {*Settings.model_fields, "output"}
    for path, file in read.items():
        for settings in (file, *(case for case in file.cases if choice.matches(case.when))):
            # No deep copy: a few aliases in YAML can stand for a value larger than the memory.
            layer = {
                field: getattr(settings, field) for field in settings.model_fields_set & fields
            }
            for field in NAMED:
                section = layer.get(field) or {}
                if "name" in section and not choice.same(field, section["name"]):
                    del layer[field]
                elif section:
                    layer[field] = {key: v for key, v in section.items() if key != "name"}
            yield path, layer


def _with_settings(tasks: list[Any], of_tasks: Mapping[str, Any], path: Path) -> list[Any]:
    """The tasks, with the settings that a file has for some of them, or (`*`) for all."""
    names = names_of(tasks)
    for name in of_tasks:
        if name not in (*names, EVERY):
            raise RetainError(
                f"{path}: field 'tasks.{name}': the stream has no such task; "
                f"it has {', '.join(names) or 'none'}"
            )
    every = of_tasks.get(EVERY, {})
    return [
        merge(task, merge(every, of_tasks.get(name, {}))) if isinstance(task, Mapping) else task
        for name, task in zip(names, tasks, strict=True)
    ]


def _learned_first(tasks: Sequence[Any], places: Any) -> Any:
    """The index of the task that is learned first; of places that are none, no task's."""
    if places == "reversed":
        return len(tasks) - 1
    first = places[0] if isinstance(places, list) and places else 1
    return first - 1 if isinstance(first, int) else None


def _expand_backbone(values: dict[str, Any], choice: Choice) -> None:
    """Replaces a backbone's short name by what it stands for."""
    section = values.get("backbone")
    if not isinstance(section, dict) or not isinstance(section.get("name"), str):
        return
    if section["name"] in choice.backbones:
        options = {key: value for key, value in section.items() if key != "name"}
        values["backbone"] = merge(choice.backbones[section["name"]], options)
