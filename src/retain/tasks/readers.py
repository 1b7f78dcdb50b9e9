"""Readers: files, datasets and hub datasets to examples.

JSONL and CSV are read so that an error can name the line, and every CSV cell is text: an answer
`None` or `007` stays as it is. The benchmark layouts are those of their official releases.
"""

from __future__ import annotations

import csv
import io
import math
import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from retain.errors import RetainError, first_line
from retain.system.files import numbered_jsonl, read_json, read_text
from retain.tasks.example import Example, user_text

COLUMNS = {"prompt": "prompt", "answer": "answer"}


def parse_row(row: Any, where: str, columns: Mapping[str, str] = COLUMNS) -> Example:
    """Parses a row of `prompt` and `answer` (a text or a list of references), or of `messages`.

    Args:
        row: the row as read.
        where: file and line, for the error.
        columns: the keys that hold the prompt and the answer.

    Raises:
        RetainError: names the place and the field.
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
                present = ", ".join(map(str, row)) or "none"
                raise RetainError(
                    f"{where}: no field '{key}' for the {role} (fields: {present}); add it, or "
                    f"name another ('columns' of the task, {role}= in Task.from_dataset)"
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
    """Parses a row that a user gives: as `parse_row`, and no text in it may look empty.

    Raises:
        RetainError: names the place and the field.
    """
    example = parse_row(row, where, columns)
    texts = [(columns["answer"], text) for text in example.references]
    for field, text in ((columns["prompt"], example.prompt), *texts):
        if _is_empty(text):
            raise RetainError(f"{where}: field '{field}' has an empty text; give it words")
    return example


def read_rows(path: Path, columns: Mapping[str, str] = COLUMNS) -> list[Example]:
    """Reads a `.jsonl`, `.csv` or `.parquet` file, by its suffix.

    Raises:
        RetainError: names the file, and the line or row.
    """
    if not os.path.isfile(path):  # Path's own raises where the name is too long
        raise RetainError(f"{path}: no such file; check the path")
    read = {".jsonl": numbered_jsonl, ".json": numbered_jsonl, ".csv": _csv, ".parquet": _parquet}
    if path.suffix not in read:
        raise RetainError(f"{path}: unknown suffix; use .jsonl, .csv or .parquet")
    unit = "row" if path.suffix == ".parquet" else "line"
    examples = [
        given_row(row, f"{path}, {unit} {number}", columns)
        for number, row in read[path.suffix](path)
    ]
    if not examples:
        raise RetainError(f"{path}: the task is empty; give it at least one line")
    return examples


def read_dataset(
    data: Any, where: str, columns: Mapping[str, str] = COLUMNS, like: Any = None
) -> list[Example]:
    """Reads a `datasets.Dataset`, a pandas DataFrame, or rows as dicts.

    Args:
        data: rows of `prompt` and `answer`, or of `messages`, as in a file.
        where: what the rows are called in an error; their number, from 1, follows.
        columns: the columns that hold the prompt and the answer. The class numbers of a dataset's
            `ClassLabel` become the names of the classes.
        like: the task's other split, whose `ClassLabel` holds where `data` has none.

    Raises:
        RetainError: names the row and the column, or says that this is no table of rows.
    """
    rows: Any = data
    if isinstance(data, str | bytes | Mapping) or not isinstance(data, Iterable):
        raise RetainError(
            f"{where}: expected a datasets.Dataset, a DataFrame or a list of dicts, and not a "
            f"{type(data).__name__}; of a DatasetDict give one split, such as data['train']"
        )
    if hasattr(rows, "columns") and hasattr(rows, "to_dict"):  # pandas, which is not imported here
        if not rows.columns.is_unique:
            twice = rows.columns[rows.columns.duplicated()][0]
            raise RetainError(f"{where}: two columns are named '{twice}'; rename one of them")
        rows = rows.astype(object).where(rows.notna(), None).to_dict("records")
    elif hasattr(rows, "with_format"):  # of `datasets`; as pandas, say, its rows are tables
        rows = rows.with_format(None)
    return _parse_all(rows, where, columns, _classes(like, columns) | _classes(data, columns))


def read_superni(folder: Path, split: str) -> list[Example]:
    """Reads Super-NaturalInstructions: `Definition` (a list), `Instances` of `input`, `output`.

    The prompt is the definition, the input, and the cue `Output:`. Empty answers are left out, and
    so are instances without any other; the benchmark has six, in task511.
    """
    return _read_instances(folder / f"{split}.json", "{definition}\n\nInput: {input}\nOutput:")


def read_long_sequence(folder: Path, split: str) -> list[Example]:
    """Reads the Long Sequence benchmark: as SuperNI, with the list of options in `labels.json`."""
    labels = read_json(folder / "labels.json")
    if not isinstance(labels, list):
        raise RetainError(f"{folder / 'labels.json'}: must be a list of the answers; correct it")
    options = f"Option: {', '.join(map(str, labels))}\n" if labels else ""
    return _read_instances(
        folder / f"{split}.json",
        "{definition}\n" + options.replace("{", "{{").replace("}", "}}") + "{input}\nAnswer:",
    )


def read_trace(folder: Path, split: str) -> list[Example]:
    """Reads TRACE: a list of `prompt` and `answer`; the prompt is used as it is."""
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
    """Reads a dataset of the hub (or of its local cache) by its id."""
    import datasets

    try:
        data = datasets.load_dataset(name, subset, split=split)
        rows = list(data)
    except Exception as error:  # network, missing id, missing split: one line for each of them
        raise RetainError(
            f"dataset '{name}', split '{split}': cannot be loaded ({first_line(error)}); "
            "check the id and the connection"
        ) from None
    return _parse_all(rows, f"{name}/{split}", columns, _classes(data, columns))


def _classes(data: Any, columns: Mapping[str, str]) -> dict[str, Sequence[str]]:
    """Returns the names of the classes by column, for the columns that are a `ClassLabel`."""
    classes = {}
    for column in columns.values():
        feature = (getattr(data, "features", None) or {}).get(column)
        feature = getattr(feature, "feature", feature)  # a list's, of its entries
        if names := getattr(feature, "names", None):
            classes[column] = names
    return classes


def _parse_all(
    rows: Iterable[Any],
    where: str,
    columns: Mapping[str, str],
    classes: Mapping[str, Sequence[str]],
) -> list[Example]:
    """Parses rows of Python, NumPy or pandas values.

    Args:
        rows: a mapping each.
        where: what the rows are called in an error.
        columns: the keys that hold the prompt and the answer.
        classes: the names of the classes, for columns of class numbers.
    """
    examples = []
    for number, row in enumerate(rows, 1):
        place = f"{where}, row {number}"
        if isinstance(row, Mapping):
            row = {key: _plain(value) for key, value in row.items()}
            for column, names in classes.items():
                row[column] = _class_names(row.get(column), names, f"{place}: field '{column}'")
        examples.append(given_row(row, place, columns))
    return examples


def _plain(value: Any) -> Any:
    """Turns NumPy values and tensors, also in a list, into lists and numbers of Python's.

    A number of NumPy keeps its text: float32's 0.1 is 0.1, and not 0.10000000149011612.
    """
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if not hasattr(value, "tolist"):
        return value
    plain = value.tolist()
    if isinstance(plain, list):
        return [_plain(each) for each in value]
    is_numpy = type(value).__module__ == "numpy"
    return float(str(value)) if is_numpy and isinstance(plain, float) else plain


def _class_names(value: Any, names: Sequence[str], where: str) -> Any:
    """Returns the names of one class number, or of a list of them."""
    if isinstance(value, list):
        return [_class_names(each, names, where) for each in value]
    if not isinstance(value, int):
        return value
    if not 0 <= value < len(names):  # −1 stands for a label that is not published
        raise RetainError(f"{where} is {value}, which is no class; leave such rows out")
    return names[value]


def _csv(path: Path) -> Iterable[tuple[int, dict[str, str]]]:
    """Yields the number of a row's last line, and the row by the header's names."""
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
    """Whether a value can be a reference: a text, or a finite number."""
    if isinstance(value, int | float):
        return not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, str)


def _is_empty(text: str) -> bool:
    """Whether a text shows nothing: white space, and characters without a width."""
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
