"""Names of others where they are printed: no command for a terminal, no formula in a cell."""

from __future__ import annotations

import csv
import io
import json

import pytest

from retain.report import RunSummary, markdown, render
from retain.report.layout import new_table
from retain.runs.labels import short
from retain.sweep import table
from retain.sweep.result import Sweep, SweepRun
from retain.system.printing import COMMANDS, ErrorConsole, PlainConsole, csv_text, escaped

NAMES = [
    "tickets\x1b]0;owned\x07\x1b[31m",
    "c1 \x9b31m",
    "\u202eoverride\u202c",
    "\u2066isolate\u2069",
    "a\x00b\x7f",
    "back\x08space\rline",
    "line\u2028line",
]


@pytest.mark.parametrize("name", NAMES)
def test_commands_are_spelled_out(name: str) -> None:
    shown = escaped(name)
    assert not COMMANDS.search(shown)
    assert json.loads(f'"{shown}"') == name  # nothing is lost
    assert escaped(shown) == shown


@pytest.mark.parametrize("name", ["任务", "é😀", "a\tb\nc", "עברית\u200f", "=x", "\\x1b"])
def test_other_texts_stay_as_they_are(name: str) -> None:
    assert escaped(name) == name


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("terminal", [True, False])
def test_no_output_obeys_a_name(name: str, terminal: bool) -> None:
    out = io.StringIO()
    console = PlainConsole(file=out, force_terminal=terminal, color_system=None, width=200)
    shown = new_table(name, [name])
    shown.add_row(name, name)
    console.print(shown)
    console.print(name, markup=False)
    text = out.getvalue()
    assert not COMMANDS.search(text)
    summary = RunSummary(
        name, name, name, [name, "b"], [[1.0], [1.0, 2.0]], {}, settings={name: name}
    )
    for text in (render([summary]), markdown([summary]), short(name)):
        assert not COMMANDS.search(text)
    run = SweepRun(variant=name, seed=0, path=name, status="missing")
    sweep = Sweep(
        files=[], dev=False, seeds=[0], settings={}, variants={name: {}}, runs=[run], notes=[]
    )
    for text in (table.as_markdown(sweep), table.as_csv(sweep)):
        assert not COMMANDS.search(text)


@pytest.mark.parametrize("begins", ["=", "+", "-", "@", "\t", "\r", " =", "\uff1d"])
def test_a_cell_begins_no_formula(begins: str) -> None:
    text = csv_text([[f"{begins}cmd|'/C calc'!A0", -1.5, None, 3, "a=b"]])
    (cells,) = csv.reader(io.StringIO(text, newline=""))
    assert cells[0].startswith("'")
    assert cells[1:] == ["-1.5", "", "3", "a=b"]


def test_a_message_that_cannot_be_written_ends_no_work() -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    console = ErrorConsole()
    console.file = Full()
    console.print("a message")
