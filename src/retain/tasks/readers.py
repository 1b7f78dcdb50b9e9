"""Readers: files and hub datasets → examples.

JSONL and CSV are read so that an error can name the line, and every CSV cell is text: an answer
`None` or `007` stays as it is. The benchmark layouts are those of their official releases.
"""

from __future__ import annotations

import csv
import io
import math
import os
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from retain.errors import RetainError, first_line
from retain.system.files import numbered_jsonl, read_json, read_text
from retain.tasks.example import Example, user_text

COLUMNS = {"prompt": "prompt", "answer": "answer"}


def parse_row(row: Any, where: str, columns: Mapping[str, str] = COLUMNS) -> Example:
    """One row of `prompt` and `answer` (a string or a list of references), or of `messages`.

    Args:
        row: the row as read.
        where: file and line, for the error.
        columns: which keys hold the prompt and the answer.

    Raises:
        RetainError: naming the place and the field.
    """
    if not isinstance(row, dict):
        raise RetainError(f"{where}: expected an object with 'prompt' and 'answer'")
    messages: tuple[dict[str, str], ...] = ()
    if row.get("messages"):
        turns = _messages(row["messages"], where)
        answer: Any = row.get(columns["answer"])
        if answer is None:
            if len(turns) < 2 or turns[-1]["role"] != "assistant":
                raise RetainError(f"{where}: 'messages' must end with the assistant's answer")
            answer, turns = turns[-1]["content"], turns[:-1]
        prompt = user_text(turns)
        messages = tuple(turns)
    else:
        for role, key in columns.items():
            if row.get(key) is None:
                found = ", ".join(map(str, row)) or "none"
                raise RetainError(
                    f"{where}: no field '{key}' for the {role} (fields: {found}); "
                    "add it, or map another with 'columns' of the task"
                )
        prompt, answer = row[columns["prompt"]], row[columns["answer"]]
    references = answer if isinstance(answer, list) else [answer]
    if not isinstance(prompt, str) or not prompt.strip():
        field = "messages" if messages else columns["prompt"]
        raise RetainError(f"{where}: field '{field}' must hold a text that is not empty")
    if not references or not all(map(_has_text, references)):
        raise RetainError(f"{where}: field '{columns['answer']}' must be a text or a list of texts")
    texts = tuple(str(reference) for reference in references)
    if not texts[0].strip():
        raise RetainError(f"{where}: field '{columns['answer']}' is empty; give it a text")
    try:
        "".join((prompt, *texts, *(turn["content"] for turn in messages))).encode()
    except UnicodeEncodeError:
        raise RetainError(f"{where}: half a character (a lone surrogate); remove it") from None
    return Example(prompt, texts, messages)


def given_row(row: Any, where: str, columns: Mapping[str, str] = COLUMNS) -> Example:
    """As `parse_row`, for what a user gives: each of its texts says something.

    Raises:
        RetainError: naming the place and the field.
    """
    example = parse_row(row, where, columns)
    texts = [(columns["answer"], text) for text in example.references]
    for field, text in ((columns["prompt"], example.prompt), *texts):
        if _is_empty(text):
            raise RetainError(f"{where}: field '{field}' has an empty text; give it words")
    return example


def read_rows(path: Path, columns: Mapping[str, str] = COLUMNS) -> list[Example]:
    """Reads a `.jsonl`, `.csv` or `.parquet` file, by its ending.

    Raises:
        RetainError: naming the file, and the line or row.
    """
    if not os.path.isfile(path):  # Path's own raises where the name is too long
        raise RetainError(f"{path}: no such file; check the path")
    read = {".jsonl": numbered_jsonl, ".json": numbered_jsonl, ".csv": _csv, ".parquet": _parquet}
    if path.suffix not in read:
        raise RetainError(f"{path}: unknown ending; use .jsonl, .csv or .parquet")
    unit = "row" if path.suffix == ".parquet" else "line"
    examples = [
        given_row(row, f"{path}, {unit} {number}", columns)
        for number, row in read[path.suffix](path)
    ]
    if not examples:
        raise RetainError(f"{path}: the task is empty; give it at least one line")
    return examples


def read_superni(folder: Path, split: str) -> list[Example]:
    """Super-NaturalInstructions: `Definition` (a list), `Instances` of `input` and `output`.

    The prompt is the definition, the input, and the cue `Output:`. Empty answers are left out, and
    instances that have no other; the benchmark has six, in task511.
    """
    return _read_instances(folder / f"{split}.json", "{definition}\n\nInput: {input}\nOutput:")


def read_long_sequence(folder: Path, split: str) -> list[Example]:
    """Long Sequence benchmark: the same layout, with `labels.json` as the list of options."""
    labels = read_json(folder / "labels.json")
    if not isinstance(labels, list):
        raise RetainError(f"{folder / 'labels.json'}: must be a list of the answers; correct it")
    options = f"Option: {', '.join(map(str, labels))}\n" if labels else ""
    return _read_instances(
        folder / f"{split}.json",
        "{definition}\n" + options.replace("{", "{{").replace("}", "}}") + "{input}\nAnswer:",
    )


def read_trace(folder: Path, split: str) -> list[Example]:
    """TRACE: a list of `prompt` and `answer`; the prompt stands as it is."""
    path = folder / f"{split}.json"
    rows = read_json(path)
    if not isinstance(rows, list):
        raise RetainError(f"{path}: must be a list of 'prompt' and 'answer' objects; correct it")
    if not rows:
        raise RetainError(f"{path}: the task is empty; give it at least one entry")
    return [given_row(row, f"{path}, entry {number}") for number, row in enumerate(rows, 1)]


def read_hub(
    name: str, split: str, subset: str | None, columns: Mapping[str, str] = COLUMNS
) -> list[Example]:
    """A dataset of the hub (or of its local cache), by its id."""
    import datasets

    try:
        rows = list(datasets.load_dataset(name, subset, split=split))
    except Exception as error:  # network, missing id, missing split: one line for each of them
        raise RetainError(
            f"dataset '{name}', split '{split}': cannot be loaded ({first_line(error)}); "
            "check the id and the connection"
        ) from None
    return [given_row(row, f"{name}/{split}, row {n}", columns) for n, row in enumerate(rows, 1)]


def _csv(path: Path) -> Iterable[tuple[int, dict[str, str]]]:
    """Rows by the header's names, each with the number of its last line."""
    rows = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        yield from ((rows.line_num, row) for row in rows)
    except csv.Error as error:
        raise RetainError(
            f"{path}, line {rows.reader.line_num}: not CSV ({error}); correct it"
        ) from None


def _parquet(path: Path) -> Iterable[tuple[int, Any]]:
    from pyarrow import parquet

    try:
        return enumerate(parquet.read_table(path).to_pylist(), 1)
    except Exception as error:  # of many kinds, such as for a date that Python does not have
        raise RetainError(
            f"{path}: not readable as Parquet ({first_line(error)}); restore it"
        ) from None


def _read_instances(path: Path, template: str) -> list[Example]:
    content = read_json(path)
    try:
        lines = content["Definition"]
        definition = (lines if isinstance(lines, str) else "\n".join(lines)).strip()
        instances = content["Instances"]
        examples = []
        for number, instance in enumerate(instances, 1):
            text = template.format(definition=definition, input=instance["input"])
            given = answer = instance["output"]
            if isinstance(given, list):
                answer = [text for text in given if text != ""]
            if given == "" or (given and not answer):
                continue
            row = {"prompt": text.strip(), "answer": answer}
            examples.append(given_row(row, f"{path}, instance {number}"))
    except (KeyError, TypeError) as error:
        raise RetainError(f"{path}: not in the benchmark's layout (missing {error})") from None
    if not examples:
        raise RetainError(f"{path}: no instance with an answer; give it at least one")
    return examples


def _has_text(value: Any) -> bool:
    """Whether a text or a number is what a reference may be."""
    if isinstance(value, int | float):
        return not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, str)


def _is_empty(text: str) -> bool:
    """Whether nothing of a text is seen: white space, and characters without a width."""
    return all(c.isspace() or unicodedata.category(c) == "Cf" for c in text)


def _messages(value: Any, where: str) -> list[dict[str, str]]:
    if not isinstance(value, list):
        raise RetainError(f"{where}: field 'messages' must be a list of role and content")
    for turn in value:
        if (
            not isinstance(turn, dict)
            or turn.get("role") not in ("system", "user", "assistant")
            or not isinstance(turn.get("content"), str)
        ):
            raise RetainError(
                f"{where}: each of 'messages' needs a 'role' (system, user or assistant) "
                "and a text 'content'"
            )
    return [{"role": turn["role"], "content": turn["content"]} for turn in value]
