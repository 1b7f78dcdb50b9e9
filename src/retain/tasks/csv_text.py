"""CSV as the file says it: every cell is text, and a line that may be read in two ways is refused.

Python's `csv` tells neither which cells were quoted nor where a quote opened. So it would read the
cell of `a, "b, c"` as two, and name the last line of a file for a quote that opened in its third.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path

from retain.errors import RetainError
from retain.system.files import read_text

LONGEST = 131_072
"""Characters of a cell: a quote that nobody closed could otherwise swallow a file in silence."""
CELL = re.compile(r'(?:"([^"]*(?:""[^"]*)*)"|([^",\r\n][^,\r\n]*|))(,|\r\n|\r|\n|\Z)')
QUOTED = re.compile(r'"[^"]*(?:""[^"]*)*"')
OTHER_SEPARATORS = {"\t": "tabs", ";": "';'", "|": "'|'"}


def read_csv(path: Path, needed: Collection[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields each row's first line (from 1) and its cells by the names of the header.

    Blank lines are skipped, and so are the first column if it has no name (pandas writes its index
    there), and other columns that have neither a name nor a text in any cell.

    Args:
        path: the file.
        needed: columns whose absence the caller names.

    Raises:
        RetainError: names the file and the line: of a row that is longer or shorter than the
            header, has a text under no name, or repeats the header; of a quote that is not closed
            or stands after white space; or of two columns of one name.
    """
    rows = _rows(path, read_text(path).lstrip("\ufeff"))
    line, names = next(rows, (1, []))
    names = [name if name.strip() else "" for name in names]
    for name in names:
        if name and names.count(name) > 1:
            raise RetainError(
                f"{path}, line {line}: two columns are named '{name}'; rename one of them"
            )
    for separator, words in OTHER_SEPARATORS.items() if len(names) == 1 else ():
        if separator in names[0]:
            raise RetainError(
                f"{path}, line {line}: its cells are separated by {words}; save it with commas"
            )
    for line, cells in rows:
        row = {name: cell for name, cell in zip(names, cells, strict=False) if name}
        if len(cells) > len(names) or (len(cells) < len(names) and row.keys() >= set(needed)):
            raise RetainError(
                f"{path}, line {line}: has {len(cells)} cells, and the header has {len(names)}; "
                "put a cell that has commas in quotes, and leave no cell out"
            )
        for name, cell in list(zip(names, cells, strict=False))[1:]:
            if not name and cell.strip():
                raise RetainError(
                    f"{path}, line {line}: the cell {cell[:40]!a} stands in a column without a "
                    "name; name the column, or put a cell that has commas in quotes"
                )
        if {cell.strip(" \t\ufeff") for cell in cells} >= set(needed):
            raise RetainError(
                f"{path}, line {line}: repeats the header; remove the line, or give each file "
                "that was joined here as its own"
            )
        yield line, row


def _rows(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Yields each row that is not blank: its first line, and its cells."""
    place, line = 0, 1
    while place < len(text):
        start, first, end = place, line, ","
        cells: list[str] = []
        while end == ",":
            cell = CELL.match(text, place)
            if cell is None:
                problem, remedy = _problem(text, place)
                raise RetainError(f"{path}, line {line}: not CSV ({problem}); {remedy}")
            quoted, plain, end = cell.groups()
            if plain is not None and plain.lstrip()[:1] == '"':
                raise RetainError(
                    f"{path}, line {line}: a quote stands after a space; remove the space, or put "
                    "the whole cell in quotes"
                )
            value = plain if quoted is None else quoted.replace('""', '"')
            if len(value) > LONGEST:
                raise RetainError(
                    f"{path}, line {line}: a cell has over {LONGEST:,} characters; close the quote "
                    "that opens it, or give the task as JSONL"
                )
            cells.append(value)
            line += text.count("\n", place, cell.end())
            place = cell.end()
        if text[start:place].strip():
            yield first, cells


def _problem(text: str, place: int) -> tuple[str, str]:
    """Why no cell begins with this quote, and what to do."""
    closed = QUOTED.match(text, place)
    if closed is None:
        return "a quote opens here and is never closed", "close it"
    below = text.count("\n", place, closed.end())
    where = f" {below} lines below" if below > 1 else " in the next line" if below else ""
    after = text[closed.end()]
    return f"a quote opens here and closes{where} before {after!a}", "write a quote in a cell twice"
