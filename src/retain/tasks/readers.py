"""Readers: files, benchmark folders and hub datasets to examples.

An error names the file and the line. The benchmark layouts are those of their official releases.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from retain.errors import RetainError, first_line
from retain.system.files import read_text
from retain.tasks.csv_text import read_csv
from retain.tasks.example import Example
from retain.tasks.json_text import read_lines, read_value
from retain.tasks.prompts import long_sequence_prompt, superni_prompt
from retain.tasks.rows import COLUMNS, as_text, given_row
from retain.tasks.tables import parse_table, read_parquet

Prompt = Callable[[str, str], str]
"""Writes a prompt from a definition and an input."""
LAYOUT = "give it 'Definition' and 'Instances' of 'input' and 'output'"
PACKED = (".gz", ".bz2", ".xz", ".zst", ".lz4", ".zip", ".7z", ".rar", ".tar", ".tgz")


def read_rows(
    path: Path, columns: Mapping[str, str] = COLUMNS, kept_back: bool = False
) -> list[Example]:
    """Reads a `.jsonl`, `.csv` or `.parquet` file, by its suffix; a `.json` file may hold a list.

    Args:
        path: the file.
        columns: the keys that hold the prompt and the answer.
        kept_back: whether all labels may be −1, as in `parse_table`.

    Raises:
        RetainError: names the file, and the line or row.
    """
    if os.path.isdir(path):
        raise RetainError(f"{path}: is a folder; name a file in it")
    if not os.path.isfile(path):  # Path's own raises where the name is too long
        raise RetainError(f"{path}: no such file; check the path")
    suffix = path.suffix.lower()
    if suffix in PACKED:
        raise RetainError(f"{path}: is packed, and is not read so; unpack it, and name the result")
    if suffix not in (".jsonl", ".json", ".csv", ".parquet"):
        raise RetainError(f"{path}: unknown suffix; use .jsonl, .csv or .parquet")
    if suffix == ".parquet":
        examples = read_parquet(path, columns, kept_back)
    elif suffix == ".json" and read_text(path).lstrip("\ufeff \t\r\n").startswith("["):
        entries = enumerate(read_value(path), 1)
        examples = [given_row(row, f"{path}, entry {number}", columns) for number, row in entries]
    else:
        rows = read_csv(path, columns.values()) if suffix == ".csv" else read_lines(path)
        examples = [given_row(row, f"{path}, line {number}", columns) for number, row in rows]
    if not examples:
        raise RetainError(f"{path}: the task is empty; give it at least one line")
    return examples


def read_superni(
    folder: Path, split: str, style: str | None = None, references: str | None = None
) -> list[Example]:
    """Reads Super-NaturalInstructions: `Definition` (a list), `Instances` of `input`, `output`.

    The prompt is the definition, the input, and the cue `Output:`. Empty answers are left out, and
    so are instances without any other; the benchmark has six, in task511.

    Args:
        folder: the task's.
        split: the name of the file.
        style: `sapt` for SAPT's prompt.
        references: `drawn` keeps one answer of an instance that has several, as SAPT does.
    """

    def prompt(definition: str, text: str) -> str:
        return superni_prompt(definition, text, style)

    return _read_instances(folder / f"{split}.json", prompt, references == "drawn")


def read_long_sequence(
    folder: Path, split: str, style: str | None = None, references: str | None = None
) -> list[Example]:
    """Reads the Long Sequence benchmark: as SuperNI, with the list of options in `labels.json`.

    `style` is `sapt` or `olora` for a published prompt, `references` as in `read_superni`.
    """
    labels = _read_json(folder / "labels.json")
    if not isinstance(labels, list):
        raise RetainError(f"{folder / 'labels.json'}: must be a list of the answers; correct it")
    place = f"{folder / 'labels.json'}, entry"
    options = [as_text(label, f"{place} {number}:") for number, label in enumerate(labels, 1)]

    def prompt(definition: str, text: str) -> str:
        return long_sequence_prompt(definition, options, text, folder.name, style)

    return _read_instances(folder / f"{split}.json", prompt, references == "drawn")


def read_trace(folder: Path, split: str) -> list[Example]:
    """Reads TRACE: a list of `prompt` and `answer`; the prompt is used as it is."""
    path = folder / f"{split}.json"
    rows = _read_json(path)
    if not isinstance(rows, list):
        raise RetainError(f"{path}: must be a list of 'prompt' and 'answer' objects; correct it")
    if not rows:
        raise RetainError(f"{path}: the task is empty; give it at least one entry")
    return [given_row(row, f"{path}, entry {number}") for number, row in enumerate(rows, 1)]


def read_hub(
    name: str,
    split: str,
    subset: str | None,
    columns: Mapping[str, str] = COLUMNS,
    kept_back: bool = False,
) -> list[Example]:
    """Reads a dataset of the hub (or of its local cache) by its id.

    `kept_back` is whether all labels may be −1, as in `parse_table`.
    """
    import datasets

    try:
        data = datasets.load_dataset(name, subset, split=split)
        if text := _guessed(data, columns.values()):
            data = datasets.load_dataset(name, subset, split=split, features=text)
        rows = list(data)
    except RetainError as error:
        raise RetainError(f"dataset '{name}', split '{split}': {error}") from None
    except Exception as error:  # network, missing id, missing split: one line for each of them
        raise RetainError(
            f"dataset '{name}', split '{split}': cannot be loaded ({first_line(error)}); "
            "check the id and the connection"
        ) from None
    features = getattr(data, "features", None) or {}
    return parse_table(rows, f"{name}/{split}", columns, features, kept_back)


def _guessed(data: Any, columns: Iterable[str]) -> Any:
    """The features of a CSV of the hub with text for `columns` whose types were guessed, or None.

    A guess reads 007 as 7. The names that pandas gives to repeated columns are refused.
    """
    import datasets

    if getattr(data, "builder_name", None) != "csv":
        return None
    if "__index_level_0__" in data.features:  # what pandas makes of cells over the header's
        raise RetainError(
            "rows have more cells than the header; put each cell that has commas in quotes"
        )
    for column in columns:
        if f"{column}.1" in data.features:
            raise RetainError(f"two columns are named '{column}'; rename one of them")
    numbers = [
        column
        for column in columns
        if isinstance(kind := data.features.get(column), datasets.Value) and kind.dtype != "string"
    ]
    text = {column: datasets.Value("string") for column in numbers}
    return datasets.Features({**data.features, **text}) if text else None


def _read_json(path: Path) -> Any:
    if not os.path.isfile(path):
        raise RetainError(f"{path}: no such file; check the path")
    return read_value(path)


def _read_instances(path: Path, prompt: Prompt, is_drawn: bool) -> list[Example]:
    content = _read_json(path)
    if not isinstance(content, dict):
        raise RetainError(f"{path}: not in the benchmark's layout (no object); {LAYOUT}")
    for field in ("Definition", "Instances"):
        if field not in content:
            raise RetainError(f"{path}: not in the benchmark's layout (no '{field}'); {LAYOUT}")
    lines, instances = content["Definition"], content["Instances"]
    if not isinstance(instances, list):
        raise RetainError(f"{path}: not in the benchmark's layout (no list 'Instances'); {LAYOUT}")
    lines = lines if isinstance(lines, list) else [lines]
    if not all(isinstance(line, str) for line in lines):
        raise RetainError(f"{path}: field 'Definition' must be a text or a list of texts; {LAYOUT}")
    definition = "\n".join(lines).strip()
    examples = list(_answered(path, prompt, is_drawn, definition, instances))
    if not examples:
        raise RetainError(f"{path}: no instance with an answer; give it at least one")
    return examples


def _answered(
    path: Path, prompt: Prompt, is_drawn: bool, definition: str, instances: list[Any]
) -> Iterator[Example]:
    draw = random.Random(0)  # the same answers in every run
    for number, instance in enumerate(instances, 1):
        place = f"{path}, instance {number}"
        for field in ("input", "output"):
            if not isinstance(instance, dict) or field not in instance:
                raise RetainError(
                    f"{place}: not in the benchmark's layout (no '{field}'); {LAYOUT}"
                )
        text = prompt(definition, as_text(instance["input"], f"{place}: field 'input'"))
        given = answer = instance["output"]
        if isinstance(given, list):
            answer = [each for each in given if each != ""]
        if given == "" or (given and not answer):
            continue
        if is_drawn and isinstance(answer, list) and answer:
            answer = draw.choice(answer)
        row = {"prompt": text, "answer": answer}
        yield given_row(row, place)
