"""docs/fidelity.md has every method, preset and benchmark, and no option that does not exist."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from retain.methods import BUILT_IN, METHODS
from retain.methods.base import flat

PAGE = Path(__file__).parents[2] / "docs" / "fidelity.md"
BENCHMARKS = ("superni", "superni-12", "long-sequence", "cl-standard", "trace")
VERDICTS = {"faithful", "differs", "bound"}
DIFFERENCES = ["where", "published", "here", "why", "what it changes"]
OPTIONS = re.compile(r"option of `preset: (\w+)`")


class Table:
    """A table of the page: the header's cells, and the rows' by them."""

    def __init__(self, lines: list[str]) -> None:
        header, _, *rows = [cells(line) for line in lines]
        assert all(len(row) == len(header) for row in rows), lines[0]
        self.header = header
        self.rows = [dict(zip(header, row, strict=True)) for row in rows]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def sections(page: str) -> dict[str, list[Table]]:
    """The tables under each heading, by its text."""
    found: dict[str, list[Table]] = {}
    for part in re.split(r"^#+ ", page, flags=re.MULTILINE)[1:]:
        heading, _, body = part.partition("\n")
        blocks = re.findall(r"(?:^\|.*\n)+", f"{body}\n", re.MULTILINE)
        assert heading not in found, f"two headings '{heading}'"
        found[heading] = [Table(block.splitlines()) for block in blocks]
    return found


def names(heading: str) -> list[str]:
    return re.findall(r"`([\w-]+)`", heading)


def problems(page: str, presets: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """What is wrong with the tables of options.

    Args:
        page: the page's text.
        presets: options by the name of the preset, by the name of the method.
    """
    wrong, tables = [], {}
    for heading, of_section in sections(page).items():
        for table in of_section:
            if match := OPTIONS.fullmatch(table.header[0]):
                assert table.header[1:] == ["value", "source"]
                tables |= {(method, match[1]): table.rows for method in names(heading)}
    wanted = {
        (method, preset): dict(flat(options))
        for method, of_method in presets.items()
        for preset, options in of_method.items()
    }
    for method, preset in wanted.keys() | tables.keys():
        where = f"{method}, preset {preset}"
        options, rows = wanted.get((method, preset), {}), tables.get((method, preset), [])
        found = [row[f"option of `preset: {preset}`"].strip("`") for row in rows]
        wrong += [f"{where}: no row for {key}" for key in options.keys() - set(found)]
        wrong += [f"{where}: the row {key} is no option of it" for key in {*found} - options.keys()]
        wrong += [f"{where}: two rows for {key}" for key in {*found} if found.count(key) > 1]
        for key, row in zip(found, rows, strict=True):
            if key in options and yaml.safe_load(row["value"].strip("`")) != options[key]:
                wrong.append(f"{where}: {key} is {options[key]}, the page has {row['value']}")
            if len(row["source"]) < 4:
                wrong.append(f"{where}: {key} has no source")
    return sorted(wrong)


def test_every_option_of_a_preset_has_its_source() -> None:
    """To mend it: give the option a row in the method's section, or correct the row."""
    presets = {name: METHODS[name].Config.presets for name in BUILT_IN}
    assert problems(PAGE.read_text(encoding="utf-8"), presets) == []


def test_every_method_and_benchmark_has_a_section_and_a_verdict() -> None:
    found = sections(PAGE.read_text(encoding="utf-8"))
    described = [name for heading in found for name in names(heading)]
    assert sorted(described) == sorted([*BUILT_IN, *BENCHMARKS])
    for heading, expected in (
        ("All seventeen methods", BUILT_IN),
        ("All five benchmarks", BENCHMARKS),
    ):
        (table,) = found[heading]
        listed = [name for row in table.rows for name in names(next(iter(row.values())))]
        assert sorted(listed) == sorted(expected)
        for row in table.rows:
            assert row["verdict"] in VERDICTS
            assert all(row.values())
            if row["verdict"] == "differs":
                assert row["main difference"] != "–"


@pytest.mark.parametrize("name", [*BUILT_IN, *BENCHMARKS])
def test_a_difference_has_its_reason_and_a_number_with_its_page(name: str) -> None:
    page = PAGE.read_text(encoding="utf-8")
    (tables,) = (of for heading, of in sections(page).items() if name in names(heading))
    rows = [row for table in tables if table.header == DIFFERENCES for row in table.rows]
    assert rows
    for row in rows:
        assert all(row.values()), row["where"]
        change = row["what it changes"]
        measured = re.search(r"\d.*\]\(experiments/", change)
        assert measured or change in ("not measured", "–"), f"{row['where']}: {change}"


GOOD = """
### `a`, `b`
| option of `preset: paper` | value | source |
|---|---|---|
| `rate` | `1.0` | eq. 3 |
| `router.key` | `none` | file.py |
"""
PRESETS = {name: {"paper": {"rate": 1, "router": {"key": "none"}}} for name in "ab"}


def test_a_complete_page_has_no_problems() -> None:
    assert problems(GOOD, PRESETS) == []


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("| `rate` | `1.0` | eq. 3 |\n", "", "a, preset paper: no row for rate"),
        ("`1.0`", "`2.0`", "b, preset paper: rate is 1, the page has `2.0`"),
        ("| eq. 3 |", "| |", "a, preset paper: rate has no source"),
        ("router.key", "router.kex", "a, preset paper: the row router.kex is no option of it"),
        ("| `rate` ", "| `router.key` | `none` | x.py |\n| `rate` ", "b, preset paper: two rows"),
        ("preset: paper", "preset: other", "a, preset other: the row rate is no option of it"),
        ("`a`, `b`", "`a`", "b, preset paper: no row for rate"),
    ],
)
def test_what_is_missing_or_wrong_is_noticed(old: str, new: str, says: str) -> None:
    assert any(line.startswith(says) for line in problems(GOOD.replace(old, new), PRESETS))
