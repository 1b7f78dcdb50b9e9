"""Rows of a table with types: of Parquet, `datasets`, pandas, NumPy, or plain Python.

Such a table knows more of its cells than they show. A class number stands for a class's name, and a
number of 32 bits has fewer digits than Python would give it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retain.errors import RetainError, first_line
from retain.tasks.example import Example
from retain.tasks.json_text import Number
from retain.tasks.rows import COLUMNS, given_row

NO_LABEL = -1
"""The class number that stands for a label which is not published."""
SHORT = {"float16": np.float16, "float32": np.float32}


def read_dataset(
    data: Any,
    where: str,
    columns: Mapping[str, str] = COLUMNS,
    like: Any = None,
    kept_back: bool = False,
) -> list[Example]:
    """Reads a `datasets.Dataset`, a pandas DataFrame, or rows as dicts.

    Args:
        data: rows of `prompt` and `answer`, or of `messages`, as in a file.
        where: what the rows are called in an error; their number, from 1, follows.
        columns: the columns that hold the prompt and the answer. The class numbers of a dataset's
            `ClassLabel` become the names of the classes.
        like: the task's other split, whose `ClassLabel` holds where `data` has none.
        kept_back: as in `parse_table`.

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
        rows = rows.apply(_own_digits).astype(object).where(rows.notna(), None).to_dict("records")
    elif hasattr(rows, "with_format"):  # of `datasets`; as pandas, say, its rows are tables
        rows = rows.with_format(None)
    own, others = (dict(getattr(split, "features", None) or {}) for split in (data, like))
    labelled = _classes(others, columns.values()).keys() - _classes(own, columns.values()).keys()
    features = own | {column: others[column] for column in labelled}
    return parse_table(rows, where, columns, features, kept_back)


def read_parquet(
    path: Path, columns: Mapping[str, str] = COLUMNS, kept_back: bool = False
) -> list[Example]:
    """Reads a `.parquet` file; where `datasets` wrote it, class numbers become the classes' names.

    Raises:
        RetainError: names the file and the row.
    """
    import datasets
    from pyarrow import parquet

    try:
        names = parquet.read_schema(path).names
        if twice := [name for name in names if names.count(name) > 1]:
            raise RetainError(f"{path}: two columns are named '{twice[0]}'; rename one of them")
        table = parquet.read_table(path)
        rows = table.to_pylist()
        asked = [name for name in dict.fromkeys(table.column_names) if name in columns.values()]
        features = datasets.Features.from_arrow_schema(table.select(asked).schema)
    except RetainError:
        raise
    except Exception as error:  # of many kinds, such as for a date that Python does not have
        raise RetainError(
            f"{path}: not readable as Parquet ({first_line(error)}); restore it"
        ) from None
    return parse_table(rows, str(path), columns, features, kept_back)


def parse_table(
    rows: Iterable[Any],
    where: str,
    columns: Mapping[str, str],
    features: Mapping[str, Any],
    kept_back: bool = False,
) -> list[Example]:
    """Parses rows of Python, NumPy or pandas values.

    Args:
        rows: a mapping each.
        where: what the rows are called in an error.
        columns: the keys that hold the prompt and the answer.
        features: the types of columns, as `datasets` has them.
        kept_back: whether all labels may be −1, which stands for one that is not published: a test
            split. They are then kept as they are.

    Raises:
        RetainError: names the row and the field.
    """
    rows = list(rows)
    classes = _classes(features, columns.values())
    for column in list(classes) if kept_back else ():
        if all(isinstance(row, Mapping) and _is_kept_back(row.get(column)) for row in rows):
            del classes[column]
    kinds = {
        column: getattr(_entry(features, column), "dtype", None) for column in columns.values()
    }
    short = {column: SHORT[kind] for column, kind in kinds.items() if kind in SHORT}
    examples = []
    for number, row in enumerate(rows, 1):
        place = f"{where}, row {number}"
        if isinstance(row, Mapping):
            row = {key: _plain(value) for key, value in row.items()}
            for column, kind in short.items():
                row[column] = _fewer_digits(row.get(column), kind)
            for column, names in classes.items():
                row[column] = _class_names(row.get(column), names, f"{place}: field '{column}'")
        examples.append(given_row(row, place, columns))
    return examples


def _classes(features: Mapping[str, Any], columns: Iterable[str]) -> dict[str, Sequence[str]]:
    """Returns the names of the classes by column, for the columns that are a `ClassLabel`."""
    names = {column: getattr(_entry(features, column), "names", None) for column in columns}
    return {column: listed for column, listed in names.items() if listed}


def _entry(features: Mapping[str, Any], column: str) -> Any:
    """The type of a column's values, or of the entries where these are lists."""
    feature = features.get(column)
    feature = feature[0] if isinstance(feature, list) and feature else feature
    return getattr(feature, "feature", feature)


def _is_kept_back(value: Any) -> bool:
    """Whether a label, or each of a list, is not published."""
    if isinstance(value, list):
        return bool(value) and all(map(_is_kept_back, value))
    return bool(value == NO_LABEL)


def _class_names(value: Any, names: Sequence[str], where: str) -> Any:
    """Returns the names of one class number, or of a list of them."""
    if isinstance(value, list):
        return [_class_names(each, names, where) for each in value]
    if not isinstance(value, int):
        return value
    if not 0 <= value < len(names):
        raise RetainError(f"{where} is {value}, which is no class; leave such rows out")
    return names[value]


def _plain(value: Any) -> Any:
    """Turns NumPy values and tensors, also in a list, into lists and numbers of Python's."""
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if not hasattr(value, "tolist"):
        return value
    plain = value.tolist()
    if isinstance(plain, list):
        return [_plain(each) for each in value]
    is_numpy = type(value).__module__ == "numpy"
    return _fewer_digits(plain, type(value)) if is_numpy else plain


def _own_digits(column: Any) -> Any:
    """A column of pandas, whose short floats would get the digits of long ones as Python's."""
    kind = SHORT.get(str(column.dtype).lower())  # Float32 is pandas' own, with <NA>
    if kind is None:
        return column
    plain = column.astype(object).where(column.notna(), None)
    return plain.map(lambda value: None if value is None else _fewer_digits(float(value), kind))


def _fewer_digits(value: Any, kind: Any) -> Any:
    """Gives numbers the text of their own type: float32's 0.1 is not 0.10000000149011612."""
    if isinstance(value, list):
        return [_fewer_digits(each, kind) for each in value]
    return Number(str(kind(value))) if isinstance(value, float) and math.isfinite(value) else value
