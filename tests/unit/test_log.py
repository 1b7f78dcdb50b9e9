"""Tables of docs/experiments have the numbers of the JSON that their page links."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

PAGES = sorted((Path(__file__).parents[2] / "docs" / "experiments").glob("2*.md"))
MEASURES = {
    "AP": "average_performance",
    "F.Ra": "forgetting",
    "BWT": "backward_transfer",
    "own block": "own_block",
}
"""Measures of a sweep's run by the heads of columns."""


def runs_by_last_row(page: Path) -> dict[str, list[Mapping[str, Any]]]:
    """The measures of all runs in linked sweeps, by the last row of their matrix as it is shown."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for link in re.findall(r"\]\(([^)\s]+\.json)\)", page.read_text(encoding="utf-8")):
        content = json.loads((page.parent / link).read_text(encoding="utf-8"))
        for run in content.get("runs", []) if isinstance(content, dict) else []:
            if run["matrix"]:
                last = " ".join(f"{score:.1f}" for score in run["matrix"][-1])
                found.setdefault(last, []).append(run["measures"])
    return found


def rows(page: Path) -> Iterator[dict[str, str]]:
    """The rows of all tables, by the heads of their columns; `last row` whatever follows that."""
    text = page.read_text(encoding="utf-8")
    for table in re.findall(r"^(?:\|.*\n)+", text, re.MULTILINE):
        lines = [
            [cell.strip() for cell in line.strip("|").split("|")] for line in table.split("\n")
        ]
        heads = ["last row" if head.startswith("last row") else head for head in lines[0]]
        yield from (dict(zip(heads, line, strict=False)) for line in lines[2:])


def is_shown(value: float | None, cell: str) -> bool:
    if value is None or cell == "–":
        return value is None and cell == "–"
    digits = len(cell.partition(".")[2])
    return abs(value - float(cell)) <= 0.5 * 10**-digits + 1e-9


def wrong_rows(page: Path) -> list[str]:
    """Rows with the last row of a run, and with measures that are of no such run."""
    runs = runs_by_last_row(page)
    wrong = []
    for row in rows(page):
        same = runs.get(row.get("last row", ""), [])
        columns = row.keys() & MEASURES.keys()
        shown = (all(is_shown(run[MEASURES[c]], row[c]) for c in columns) for run in same)
        if same and not any(shown):
            wrong.append(" | ".join(row.values()))
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_rows_are_those_of_the_runs(page: Path) -> None:
    assert wrong_rows(page) == []


def test_most_pages_with_a_sweep_have_such_rows() -> None:
    """Else the test above would check nothing."""
    runs = {page: runs_by_last_row(page) for page in PAGES}
    counts = [sum(row.get("last row") in of for row in rows(page)) for page, of in runs.items()]
    assert sum(counts) > 40


def test_a_wrong_number_is_noticed(tmp_path: Path) -> None:
    measures = {"average_performance": 6.944, "forgetting": None, "own_block": 0.5}
    sweep = {"runs": [{"matrix": [[5.0], [0.0, 13.888]], "measures": measures}]}
    (tmp_path / "sweep.json").write_text(json.dumps(sweep), encoding="utf-8")
    page = tmp_path / "page.md"
    head = (
        "[JSON](sweep.json)\n\n| | AP | F.Ra | own block | last row: a, b |\n|---|---|---|---|---|"
    )
    good = "| good | 6.9 | – | 0.500 | 0.0 13.9 |\n"
    bad = "| bad | 7.0 | – | 0.500 | 0.0 13.9 |\n| bad | 6.9 | 0.0 | 0.500 | 0.0 13.9 |\n"
    page.write_text(f"{head}\n{good}{bad}| of no run | 9.0 | – | – | 1.0 2.0 |\n", encoding="utf-8")
    assert wrong_rows(page) == [
        "bad | 7.0 | – | 0.500 | 0.0 13.9",
        "bad | 6.9 | 0.0 | 0.500 | 0.0 13.9",
    ]
