"""Tests of the reports: escaping, missing scores, layout and repeatability."""

import io
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console, RenderableType

from retain.errors import RetainError
from retain.report import (
    RunSummary,
    heat_map,
    markdown,
    matrices_png,
    metrics_table,
    render,
    score_table,
    sentence,
    side_by_side,
)
from retain.report.changes import Changes, Lost
from retain.report.losses import PhaseLosses
from retain.report.plots import Curve, curves
from retain.report.routing import Routing
from retain.report.tables import cost_table, standings_table

ODD = '<b>&"任务'

RUN = RunSummary(
    label="sapt",
    method="sapt",
    backbone="tiny",
    tasks=["tickets", "intents", "mails"],
    matrix=[[90.0], [88.04, 95.0], [87.5, None, 93.3]],
    metrics={
        "average_performance": 91.24,
        "forgetting": 1.5,
        "backward_transfer": -1.5,
        "forward_transfer": None,
    },
    settings={"rank": 4, "note": "<i>x</i>"},
    routing=Routing(
        "sapt",
        ["tickets", "intents", "mails"],
        after=[[1.0], [0.1, 0.9], [0.2, 0.2, 0.6]],
        now=[[0.9, 0.05, 0.05], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]],
        by_layer=[],
    ),
    losses=[
        PhaseLosses("tickets", "learn", 2, {"task": [(1, 2.0), (2, 1.0)]}),
        PhaseLosses("intents", "learn", 2, {"task": [(1, 1.5), (2, 0.5)], "kl": [(2, 0.0)]}),
    ],
    changes=Changes(
        {"tickets": 7, "intents": 0},
        [Lost("tickets", "<u>Which</u> team?", ["billing"], "billing", "sales", 100.0)],
    ),
    costs=[
        {"seconds": 90.0, "parameters": 1000, "bytes": 5000},
        {"bytes": 7000},
        {"seconds": 30.0, "parameters": 1000, "bytes": 5000},
    ],
)
SINGLE = RunSummary("one", "plain", "tiny", ["only"], [[50.0]], {"average_performance": 50.0})


def shown(renderable: RenderableType, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def many(count: int) -> RunSummary:
    tasks = [f"task{j}_with_quite_a_long_name" for j in range(count)]
    matrix = [[100.0] * (i + 1) for i in range(count)]
    return replace(RUN, tasks=tasks, matrix=matrix, costs=[])


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (
            RUN,
            "sapt learned 3 tasks; after the last it scores 91.2 on average and lost 1.5 points "
            "on earlier tasks since their best.",
        ),
        (SINGLE, "one learned 1 task; its score is 50.0."),
        (replace(SINGLE, metrics={}), "one learned 1 task; its score is unknown."),
        (replace(RUN, metrics={}), "sapt learned 3 tasks; its scores were not measured."),
        (
            replace(RUN, matrix=RUN.matrix[:2], metrics={"forgetting": -0.01}),
            "sapt learned 3 tasks, the newest not scored yet; after the one before, it lost "
            "nothing on earlier tasks.",
        ),
        (
            replace(RUN, metrics={"forgetting": -2.0}),
            "sapt learned 3 tasks; after the last it gained 2.0 points on earlier tasks over "
            "their earlier best.",
        ),
        (replace(SINGLE, matrix=[]), "one learned 1 task; its score is not measured yet."),
        (replace(SINGLE, tasks=[], matrix=[]), "one has not finished a task yet."),
    ],
)
def test_sentence(run: RunSummary, expected: str) -> None:
    assert sentence(run) == expected


def test_score_table_is_lower_triangular_with_dashes() -> None:
    lines = shown(score_table(RUN)).splitlines()
    cells = {}
    for line in lines:
        if "after" in line:
            label, *values = re.split(r" {2,}", line.strip())
            cells[label] = values
    assert cells == {
        "after tickets": ["90.0"],
        "after intents": ["88.0", "95.0"],
        "after mails": ["87.5", "–", "93.3"],
    }


def test_names_are_not_read_as_markup() -> None:
    assert "[red]x" in shown(score_table(replace(SINGLE, tasks=["[red]x"])))
    assert "[red]x" in shown(metrics_table([replace(SINGLE, label="[red]x")]))


def test_metrics_table() -> None:
    text = shown(metrics_table([RUN, SINGLE]))
    for part in ("AP", "F.Ra", "BWT", "FWT", "sapt", "one", "91.2", "1.5", "-1.5", "–"):
        assert part in text


def test_tables_stack_in_80_columns_and_stand_side_by_side_in_200() -> None:
    other = replace(RUN, label="seqlora")
    narrow, wide = shown(side_by_side([RUN, other])), shown(side_by_side([RUN, other]), 200)
    assert max(map(len, narrow.splitlines())) <= 80
    assert not any("sapt" in line and "seqlora" in line for line in narrow.splitlines()[:5])
    assert any("sapt" in line and "seqlora" in line for line in wide.splitlines()[:5])


def test_fifteen_tasks_keep_their_numbers_in_80_columns() -> None:
    text = shown(side_by_side([many(15)]))
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("100.0") == 15 * 16 // 2


def test_standings() -> None:
    rows = [re.split(r" {2,}", row.strip()) for row in shown(standings_table(RUN)).splitlines()]
    assert ["tickets", "90.0", "90.0", "87.5", "-2.5"] in rows
    assert ["intents", "95.0", "95.0", "–", "–"] in rows


def test_costs_of_an_earlier_version_are_not_summed() -> None:
    rows = [re.split(r" {2,}", row.strip()) for row in shown(cost_table(RUN)).splitlines()]
    assert ["tickets", "1.5", "1,000", "5"] in rows
    assert ["all", "–", "–", "17"] in rows


def test_page_shows_answers_that_were_lost() -> None:
    page = render([RUN])
    assert "7 of tickets." in page
    assert "&lt;u&gt;Which&lt;/u&gt; team?" in page
    assert "Right then, wrong now" not in render([replace(RUN, changes=Changes({"a": 0}, []))])


def test_markdown() -> None:
    text = markdown([replace(RUN, tasks=["a|b", "<x>", "mails"]), SINGLE])
    assert "| after a\\|b | 90.0 |  |  |" in text
    assert "\\<x\\>" in text
    assert "| after mails | 87.5 | – | 93.3 |" in text
    assert "|  | sapt | one |\n| --- | ---: | ---: |\n| AP" in text


def test_heat_map_is_repeatable_parses_and_leaves_gaps_blank() -> None:
    labels = [ODD, "$x^$", "c"]
    svg = heat_map(RUN.matrix, labels, labels, ODD, 100.0)
    assert svg == heat_map(RUN.matrix, labels, labels, ODD, 100.0)
    texts = [element.text for element in ElementTree.fromstring(svg).iter() if element.text]
    values = [text for text in texts if re.fullmatch(r"[\d.]+", text)]
    assert values == ["90.0", "88.0", "95.0", "87.5", "93.3"]
    assert texts.count(ODD) == 3
    assert "$x^$" in texts
    assert svg.startswith("<svg ")
    assert ' id="' not in svg


def test_heat_map_cuts_long_labels() -> None:
    svg = heat_map([[0.5]], ["r" * 99], ["任" * 99], "t", 1.0)
    assert "r" * 23 + "…" in svg
    assert "任" * 11 + "…" in svg
    assert "0.50" in svg


@pytest.mark.parametrize(
    ("matrix", "rows", "columns"),
    [([], [], ["a"]), ([[1.0]], ["a", "b"], ["a"]), ([[1.0, 2.0]], ["a"], ["a"])],
)
def test_heat_map_rejects_wrong_shapes(
    matrix: list[list[float | None]], rows: list[str], columns: list[str]
) -> None:
    with pytest.raises(ValueError, match="row"):
        heat_map(matrix, rows, columns, "t", 1.0)


def test_matrices_png(tmp_path: Path) -> None:
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    matrices_png([RUN, SINGLE], first)
    matrices_png([RUN, SINGLE], second)
    assert first.read_bytes().startswith(b"\x89PNG")
    assert first.read_bytes() == second.read_bytes()
    with pytest.raises(RetainError, match="no scores to draw"):
        matrices_png([replace(SINGLE, matrix=[])], first)


def test_page_is_self_contained_and_repeatable() -> None:
    page = render([RUN, SINGLE])
    assert page == render([RUN, SINGLE])
    assert "<script" not in page
    assert "<?xml" not in page
    assert page.count("<!DOCTYPE") == 1
    outside = re.sub(r'href="(#|data:image/png;base64,)|url\(#', "", page)  # its own parts are not
    assert not re.search(r"(src|href|resource)\s*=|url\(|@import", outside)
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    assert page.count("<svg ") == 6  # two score matrices, and four of the first run alone
    for title in ("Right after learning", "Now", "Training loss by part"):
        assert page.count(f">{title}</text>") == 1
    assert sentence(RUN) in page
    assert sentence(SINGLE) in page


def test_page_escapes_free_text() -> None:
    page = render([replace(RUN, label=ODD, tasks=[ODD, "b", "c"])])
    assert "<b>" not in page
    assert "<i>" not in page
    assert "<u>" not in page
    assert "&lt;b&gt;&amp;&#34;任务" in page
    assert "&lt;i&gt;x&lt;/i&gt;" in page


def test_page_of_a_run_without_scores() -> None:
    page = render([replace(SINGLE, matrix=[], metrics={})])
    assert "<svg" not in page
    assert "its score is not measured yet" in page


def test_page_of_many_tasks_has_whole_tables() -> None:
    run = many(8)
    assert run.routing is not None
    weights = [[1 / (i + 1)] * (i + 1) for i in range(8)]
    routing = replace(run.routing, tasks=run.tasks, after=weights, now=weights)
    page = render([replace(run, routing=routing)])
    assert page.count("<summary>Attention over the blocks right after learning</summary>") == 1
    assert page.count("<summary>Attention over the blocks now</summary>") == 1


def test_curves_name_every_line() -> None:
    """Also one that matplotlib would leave out by itself."""
    svg = curves([Curve(name, [(1, 50.0), (2, 60.0)]) for name in ("_a", "b")], "t", "x")
    texts = [element.text for element in ElementTree.fromstring(svg).iter()]
    assert (texts.count("_a"), texts.count("b")) == (1, 1)
