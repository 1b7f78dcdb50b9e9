"""Writes docs/reference.md from docstrings, options and the command line's help.

Also what `retain methods` lists, so that it need not import the methods.

python docs/make_reference.py
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel
from typer.models import ArgumentInfo

import retain
from retain.cli import app
from retain.cli.known_methods import INDEX, loaded_methods
from retain.experiment.config import ExperimentConfig
from retain.experiment.files import Case, ExperimentFile, Settings, When
from retain.experiment.read_tasks import FOLDER_READERS
from retain.methods import BUILT_IN, METHODS, MethodConfig
from retain.metrics import continual
from retain.metrics.extract import EXTRACTIONS
from retain.metrics.text import METRICS

PAGE = Path(__file__).parent / "reference.md"
PYTHON = [
    (f"retain.{name}", getattr(retain, name)) for name in retain.__all__ if name != "__version__"
]
FILES = (
    ("config.yaml", "the whole experiment, with every option's value"),
    ("environment.json", "versions of libraries, and fingerprints of the backbone's parts"),
    ("manifest.json", "sha256 of every finished file"),
    ("scores.json", "the score matrix and the metrics: see below"),
    (
        "single.json",
        "a score per task, read from the pertask run of `retain report --single`",
    ),
    (
        "compact/NN.safetensors",
        "a compaction (`retain compact`) made after task NN: `sharing` (each task's block), "
        "`before` and `after` (its score), and the blocks",
    ),
    (".lock", "held by the one process that writes"),
    ("tasks/NN-name/", "a folder per task, numbered from 01 in the order learned"),
    (
        "…/task.json",
        "`name`, `metric`, `extract`, `training` and `max_new_tokens` (the task's own), `examples` "
        "(how many of each split), `fingerprints` (sha256 of each split)",
    ),
    ("…/test.jsonl", "the test examples: `prompt`, `answer` (a list), `messages` of a chat"),
    (
        "…/training.jsonl",
        "a line per logged step: `phase`, `step`, `loss`, `loss_<part>`, `learning_rate`, "
        "`grad_norm`, `epoch`",
    ),
    ("…/cost.json", "`parameters` that learned, `seconds` of learning it, evaluation not included"),
    (
        "…/predictions/NN.jsonl",
        "answers given right after this task to the test examples of task NN: `prompt`, "
        "`references`, `prediction`, `score` (0 to 100), `routing` where the method routes, and "
        "`example`, its place in the test split from 0, where a sample was asked",
    ),
    (
        "…/evaluation.json",
        "this task's row of the matrix: `scores` of all tasks so far, and `routing`, the mean "
        "weights over the blocks (null without blocks); `samples` as in `scores.json`",
    ),
    ("…/zero_shot.json", "the task's score before it was learned (`evaluation.zero_shot`)"),
    ("…/adapter_*", "the task's block in PEFT's layout"),
    ("…/model.safetensors", "a whole model (`tune: full`), of the newest task only"),
    ("…/router.safetensors, prompts.safetensors, …", "what else the method learned"),
    ("…/pseudo.jsonl, quality.json", "pseudo-samples, and what was measured of them"),
    ("…/memory.jsonl, teacher/", "kept training examples, and the model's signals on them"),
    ("…/heads.json, gates.json", "SEEKR's choice of heads; AM-LoRA's gates by layer"),
    ("…/checkpoints/", "unfinished work; gone once the task is learned"),
)
"""Files of a run, and what is in them; `…` is a task's folder."""
SCORES = {
    "tasks": "names, in the order learned",
    "matrix": "`matrix[i][j]`: score on task j after learning task i, 0 to 100; null: not measured",
    "samples": (
        "`samples[i]`: an entry for each score of row i that covers only a sample of its task's "
        "test examples (`evaluation.old`): `task`, the task's place from 0; `examples`, the size "
        "of the sample; `of`, the number of test examples; `error`, the standard error. The list "
        "is empty if every score of the row covers all test examples"
    ),
    "standard_errors": "the standard error of each metric that is computed from such scores",
    "single": "per task the score of a pertask run, or null until `retain report RUN --single`",
    "zero_shot": "per task the score before it was learned, or null",
}
"""Keys of scores.json beside its metrics."""


def page() -> str:
    """The whole page as Markdown."""
    lines = [
        "# Reference",
        "",
        "Written by `python docs/make_reference.py` from the code itself.",
        *_commands(),
        *_python(),
        *_experiment(),
        *_metrics(),
        *_methods(),
        *_files(),
    ]
    return "\n".join(lines) + "\n"


def _commands() -> Iterator[str]:
    yield from ("", "## Commands")
    for command in app.registered_commands:
        function = command.callback
        assert function is not None
        arguments, options = [], []
        parameters = inspect.signature(function).parameters
        for name, hint in typing.get_type_hints(function, include_extras=True).items():
            if name == "return":
                continue
            kind, given = typing.get_args(hint)
            if isinstance(given, ArgumentInfo):
                arguments.append(given.metavar or name.upper())
                continue
            named = isinstance(given.default, str) and given.default.startswith("--")
            flag = given.default if named else f"--{name.replace('_', '-')}"
            words = _values(kind).removesuffix(", none").upper()
            if typing.get_origin(kind) is Literal:
                words = f"{{{','.join(typing.get_args(kind))}}}"
            value = "" if kind is bool else f" {given.metavar or words}"
            default = parameters[name].default
            shown = "required" if default is inspect.Parameter.empty else _default(default)
            options.append(f"| `{flag}{value}` | {_cell(given.help or '')} | {shown} |")
        title = " ".join(["retain", command.name or function.__name__, *arguments])
        yield from ("", f"### `{title}`", "", inspect.getdoc(function) or "")
        if options:
            yield from ("", "| option | | default |", "|---|---|---|", *options)


def _python() -> Iterator[str]:
    yield from ("", "## Python")
    for name, thing in PYTHON:
        if inspect.isclass(thing) and issubclass(thing, Exception):
            yield from ("", f"### `{name}`", *_docstring(thing))
            continue
        yield from ("", f"### `{name}{_signature(thing)}`", *_docstring(thing))
        if dataclasses.is_dataclass(thing):
            yield from ("", "| field | type |", "|---|---|")
            for field in dataclasses.fields(thing):
                yield f"| `{field.name}` | `{_cell(str(field.type))}` |"
        short = name.rpartition(".")[2]
        for key, member in _members(thing).items() if inspect.isclass(thing) else ():
            function = getattr(member, "__func__", member)
            if isinstance(member, property):
                yield from ("", f"#### `{short}.{key}`", *_docstring(member))
            elif inspect.isfunction(function):
                yield from ("", f"#### `{short}.{key}{_signature(function)}`")
                yield from _docstring(function)


def _members(kind: type) -> dict[str, Any]:
    """Public members by name: the class's own, then those of its bases that are retain's."""
    members: dict[str, Any] = {}
    for base in kind.__mro__:
        for key, member in vars(base).items() if base.__module__.startswith("retain.") else ():
            if not key.startswith("_"):
                members.setdefault(key, member)
    return members


def _signature(function: Any) -> str:
    """Names and defaults, without types: the docstring explains."""
    parts = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in ("self", "cls"):
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in parts:
            parts.append("*")
        default = repr(parameter.default).replace("<factory>", "{}")
        empty = parameter.default is parameter.empty
        parts.append(parameter.name if empty else f"{parameter.name}={default}")
    return f"({', '.join(parts)})"


def _docstring(thing: Any) -> list[str]:
    text = inspect.getdoc(thing) or ""
    return ["", "```text", text, "```"] if "\n" in text else ["", text]


def _experiment() -> Iterator[str]:
    yield from (
        "",
        "## The experiment file",
        "",
        _first(ExperimentConfig),
        *_options(ExperimentConfig),
    )
    for name, field in ExperimentConfig.model_fields.items():
        config = _model(field.annotation)
        if config is not None:
            yield from ("", f"### `{name}`", "", _first(config), *_options(config))
    for title, part, fields in (
        ("Experiments composed of files", ExperimentFile, _explained(Settings)),
        ("`cases`", Case, {}),
        ("`when`", When, {}),
    ):
        yield from ("", f"### {title}", "", _first(part), "", "| field | |", "|---|---|")
        for name, words in {**_explained(part), **fields}.items():
            yield f"| `{name}` | {_cell(words)} |"


def _explained(thing: Any) -> dict[str, str]:
    """What a docstring says of each attribute."""
    _, _, section = (inspect.getdoc(thing) or "").partition("Attributes:\n")
    return dict(re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE))


def _metrics() -> Iterator[str]:
    yield from (
        "",
        "## Metrics",
        "",
        "A metric rates one answer from 0 to 1. A task's score is the mean over its test examples, "
        "times 100. The task's `metric` names the metric. Without it the task's reader decides, as "
        "the last column says; for files and data sets of the hub it is `exact_match`.",
        "",
        "| metric | | default of the readers |",
        "|---|---|---|",
    )
    for name, function in METRICS.items():
        readers = [
            f"`{reader}`" + (f" ({', '.join(folders)})" if by_folder else "")
            for reader, (_, default, by_folder) in FOLDER_READERS.items()
            if (
                folders := [folder for folder, own in by_folder.items() if own == name]
                + ["any other folder"] * (default == name)
            )
        ]
        words = (inspect.getdoc(function) or "").replace("\n\n", " ")
        yield f"| `{name}` | {_cell(words)} | {', '.join(readers)} |"
    yield from (
        "",
        "A task's `extract` says which part of answers and references the metric compares. `whole` "
        "is the default. Runs store and show the whole answer in any case.",
        "",
        "| extract | |",
        "|---|---|",
    )
    for name, cut in EXTRACTIONS.items():
        words = (inspect.getdoc(cut) or "").replace("\n\n", " ")
        yield f"| `{name}` | {_cell(words)} |"


def _files() -> Iterator[str]:
    yield from ("", "## Files of a run", "", "| file | |", "|---|---|")
    for name, words in FILES:
        yield f"| `{name}` | {_cell(words)} |"
    yield from ("", "`scores.json`:", "", "| key | |", "|---|---|")
    for name, words in SCORES.items():
        yield f"| `{name}` | {_cell(words)} |"
    for name in continual.summary([]):
        words = inspect.getdoc(getattr(continual, name)) or ""
        yield f"| `metrics.{name}` | {_cell(words)} |"


def _methods() -> Iterator[str]:
    yield from ("", "## Methods' options")
    for name, method in sorted(METHODS.items()):
        yield from (
            "",
            f"### `{name}`",
            "",
            _first(method),
            "",
            f"Stores per task: {method.traits.stores}.",
        )
        yield from _options(method.Config)
        for preset, options in method.Config.presets.items():
            yield from ("", f"`preset: {preset}` is `{{{_flow(options)}}}`.")


def _flow(options: Mapping[str, Any]) -> str:
    """Options as YAML writes them, in one line."""
    parts = []
    for name, value in options.items():
        inner = f"{{{_flow(value)}}}" if isinstance(value, Mapping) else yaml.safe_dump(value)
        parts.append(f"{name}: {inner.removesuffix('...' + chr(10)).strip()}")
    return ", ".join(parts)


def _first(thing: Any) -> str:
    """A docstring as one paragraph, without its sections."""
    text = re.split(r"\n\n?(?:Args|Raises|Returns|Attributes):", inspect.getdoc(thing) or "")[0]
    return " ".join(text.split())


def _options(config: type[BaseModel]) -> Iterator[str]:
    rows = list(_fields(config, ""))
    if rows:
        yield from ("", "| option | values | default |", "|---|---|---|")
    for name, values, default in rows:
        yield f"| `{name}` | {_cell(values)} | {_cell(default)} |"
    nested = {_model(field.annotation) for field in config.model_fields.values()} - {None}
    if config is not ExperimentConfig:
        for inner in sorted((each for each in nested if each), key=lambda each: each.__name__):
            yield from ("", _first(inner))


def _fields(config: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str]]:
    for name, field in config.model_fields.items():
        inner = _model(field.annotation)
        if inner is not None and config is not ExperimentConfig:
            yield from _fields(inner, f"{prefix}{name}.")
        elif inner is None:
            default = (
                "required"
                if field.is_required()
                else _default(field.get_default(call_default_factory=True))
            )
            values = _values(field.annotation)
            if name == "preset" and issubclass(config, MethodConfig):
                values = ", ".join(f"`{preset}`" for preset in ("default", *config.presets))
            yield f"{prefix}{name}", values, default


def index() -> str:
    """The file that `retain methods` reads."""
    own = {name: listed for name, listed in loaded_methods().items() if name in BUILT_IN}
    return json.dumps(own, indent=2, ensure_ascii=False) + "\n"


def _model(annotation: Any) -> type[BaseModel] | None:
    """The options of a nested field."""
    if typing.get_origin(annotation) is list:
        (annotation,) = typing.get_args(annotation)
    return annotation if inspect.isclass(annotation) and issubclass(annotation, BaseModel) else None


def _default(value: Any) -> str:
    if value is None:
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _values(annotation: Any) -> str:
    """A type in words."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _values(inner[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (typing.Union, types.UnionType):
        known = [each for each in inner if each is not type(None)]
        none = [", none"] if len(known) < len(inner) else []
        return "".join([" or ".join(_values(each) for each in known), *none])
    if origin is list:
        return f"list of {_values(inner[0])}"
    if origin is dict or annotation is dict or _model(annotation):
        return "mapping"
    words = {int: "integer", float: "number", str: "text", bool: "`true`, `false`", Path: "path"}
    return words.get(annotation, "anything")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    INDEX.write_text(index(), encoding="utf-8")
