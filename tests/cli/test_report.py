"""Tests of the reports: escaping, missing scores, layout and repeatability."""

import html
import io
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console, RenderableType

from retain.errors import RetainError
from retain.learner.learner import Learner
from retain.methods import METHODS
from retain.methods.amlora.diagnostics import SIGMOID, SOFTMAX, LayerGates, effective_grid
from retain.methods.base import flat
from retain.methods.shared.pseudo_diagnostics import TaskSamples, samples_section
from retain.methods.shared.routing_diagnostics import SHARES, Routing, routing_section
from retain.metrics.continual import Drop, Drops
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
    summarise,
)
from retain.report.changes import Changes, Lost
from retain.report.draw_sections import section_tables
from retain.report.losses import PhaseLosses
from retain.report.plots import Curve, curves
from retain.report.summary import Examined
from retain.report.tables import cost_table, standings_table
from retain.runs.records import Sample
from retain.runs.results import TaskCost
from retain.testing.tiny import EVALUATION, TRAINING, make_backbone, make_task

ODD = '<b>&"任务'

ROUTING = Routing(
    ["tickets", "intents", "mails"],
    after=[[1.0], [0.1, 0.9], [0.2, 0.2, 0.6]],
    now=[[0.9, 0.05, 0.05], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]],
)
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
    examined=[Examined("tickets", "exact_match", 50, 1200), Examined("mails", "rouge_l", 9, 7)],
    settings={"rank": 4, "note": "<i>x</i>"},
    sections=[routing_section(ROUTING)],
    losses=[
        PhaseLosses("tickets", "learn", 2, {"task": [(1, 2.0), (2, 1.0)]}),
        PhaseLosses("intents", "learn", 2, {"task": [(1, 1.5), (2, 0.5)], "kl": [(2, 0.0)]}),
    ],
    changes=Changes(
        {"tickets": (7, 50), "intents": (0, 40)},
        [Lost("tickets", "<u>Which</u> team?", ["billing"], "billing", "sales", 100.0)],
    ),
    costs=[
        TaskCost(parameters=1000, seconds=90.0, bytes=5000),
        TaskCost(parameters=1000, seconds=60.0, bytes=7000),
        TaskCost(parameters=1000, seconds=30.0, bytes=5000),
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
            "on earlier tasks since the best score each ever had, most on tickets (2.5).",
        ),
        (
            replace(RUN, matrix=[[90.0], [80.0, 95.0]], metrics={"forgetting": 10.0}),
            "sapt learned 3 tasks, the newest not scored yet; after the one before, it lost 10.0 "
            "points on earlier tasks since the best score each ever had.",
        ),
        (
            replace(RUN, matrix=[[90.0], [99.0, 8.0], [90.0, 1.0, 5.0]]),
            "sapt learned 3 tasks; after the last it scores 91.2 on average and lost 1.5 points "
            "on earlier tasks since the best score each ever had, most on tickets (9.0).",
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
            "the best score each had before.",
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
        "after 1 tickets": ["90.0"],
        "after 2 intents": ["88.0", "95.0"],
        "after 3 mails": ["87.5", "–", "93.3"],
    }
    assert lines[2].split() == ["1", "2", "3"]


def test_a_long_name_takes_one_line() -> None:
    run = replace(RUN, tasks=["tickets", "task1687_sentiment140_classification", "mails"])
    rows = [line for line in shown(score_table(run)).splitlines() if "after" in line]
    assert "after 2 task1687_sentiment140_c…" in rows[1]
    assert len(shown(score_table(run)).splitlines()) == len(shown(score_table(RUN)).splitlines())


def test_names_are_not_read_as_markup() -> None:
    assert "[red]x" in shown(score_table(replace(SINGLE, tasks=["[red]x"])))
    assert "[red]x" in shown(metrics_table([replace(SINGLE, label="[red]x")]))


def test_metrics_table() -> None:
    text = shown(metrics_table([RUN, SINGLE]))
    for part in ("AP", "F.Ra", "BWT", "sapt", "one", "91.2", "1.5", "-1.5", "–"):
        assert part in text
    assert "FWT" not in text  # neither run has one
    assert "FWT" not in markdown([RUN])
    known = replace(SINGLE, metrics={"forward_transfer": 3.0})
    assert re.search(r"FWT.* – +3\.0", shown(metrics_table([RUN, known])))
    assert "Metrics" not in shown(side_by_side([replace(SINGLE, matrix=[], metrics={})]))


def pages(*runs: RunSummary) -> list[str]:
    """The terminal's tables, Markdown and the HTML page, each on one line."""
    found = (shown(side_by_side(runs)), markdown(runs), render(runs))
    return [" ".join(text.split()) for text in found]


def test_ap_over_other_tasks_is_not_compared() -> None:
    run = replace(RUN, sections=[], costs=[])
    first, last = run.examined
    short = replace(run, tasks=["tickets"], matrix=[[90.0]], examined=[first])
    other_data = replace(run, examined=[first, replace(last, fingerprint="f0")])
    fewer = replace(run, examined=[first, replace(last, tested=5)])
    warning = "These runs do not have the same tasks: their AP cannot be compared."
    for other in (short, other_data, fewer):
        assert all(warning in page for page in pages(run, other))
    another_order = replace(run, label="b", examined=[replace(last, trained=3), first])
    unscored = replace(run, tasks=["tickets", "mails"], matrix=[[90.0]])
    assert not any(warning in page for page in pages(run, another_order))
    assert not any(warning in page for page in pages(short, unscored))


def test_a_missing_fwt_says_how_to_get_it() -> None:
    known = replace(RUN, metrics={"forward_transfer": 3.0})
    assert all("retain report RUN --single PERTASK" in page for page in pages(RUN, known))
    assert not any("--single" in page for page in [*pages(known), *pages(RUN)])


def test_runs_in_folders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    places = ["/x/a/sapt", "/x/b/sapt", "/y/b/sapt", "/x/b/plain"]
    runs = [replace(RUN, label=Path(p).name, folder=Path(p)) for p in places]
    labels = "|  | x/a/sapt | x/b/sapt | y/b/sapt | plain |"
    assert labels in markdown(runs)
    assert "### x/b/sapt\n\nx/b/sapt learned 3 tasks" in markdown(runs)
    assert "|  | a/sapt | b/sapt |" in markdown(runs[:2])
    assert "|  | sapt | sapt |" in markdown([runs[0], runs[0]])
    page = render(runs)
    assert "<h2>x/a/sapt</h2>" in page
    assert "<h2>plain</h2>" in page
    assert "b/sapt" in shown(side_by_side(runs[:2]))
    matrices_png(runs[:2], tmp_path / "apart.png")
    matrices_png([replace(run, folder=Path()) for run in runs[:2]], tmp_path / "alike.png")
    assert (tmp_path / "apart.png").read_bytes() != (tmp_path / "alike.png").read_bytes()


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


def test_costs_and_their_sum() -> None:
    rows = [re.split(r" {2,}", row.strip()) for row in shown(cost_table(RUN)).splitlines()]
    assert ["tickets", "1.5", "1,000", "5"] in rows
    assert ["all", "3.0", "–", "17"] in rows


def test_page_shows_answers_that_were_lost() -> None:
    page = render([RUN])
    assert "since their task was learned: 7 of 50 in tickets." in page
    assert "&lt;u&gt;Which&lt;/u&gt; team?" in page
    nothing = render([replace(RUN, changes=Changes({"a": (0, 9)}, []))])
    assert "since their task was learned: nothing." in nothing
    assert "The answers that lost most" not in nothing
    assert "Right then, wrong now" not in render([replace(RUN, changes=Changes({}, []))])


def test_page_says_what_scores_rest_on() -> None:
    page = render([RUN])
    row = '<th scope="row">1 tickets</th><td>exact_match</td><td>50</td><td>1,200</td>'
    assert row in page
    assert "points: 7.1 at a score of 50 with 50 examples." in page  # 100·√(0.5·0.5/50)
    assert "√" not in render([replace(RUN, examined=RUN.examined[1:])])


@pytest.mark.parametrize(("method", "limit"), [("pertask", 3), ("seqlora", 9)])
def test_reading_a_run(method: str, limit: int, tmp_path: Path) -> None:
    """What its scores rest on, and a count of lost answers also where none can be lost."""
    learner = Learner(
        make_backbone("llama"),
        method,
        tmp_path / "run",
        training=TRAINING,
        evaluation={**EVALUATION, "limit": limit},
    )
    for name in ("copy", "letter"):
        learner.learn(make_task(name))
    found = summarise(tmp_path / "run")
    tested = min(limit, 4)
    assert found.examined == [
        Examined(name, "exact_match", tested, 12, make_task(name).fingerprints()["test"])
        for name in ("copy", "letter")
    ]
    assert found.folder == tmp_path / "run"
    assert found.changes is not None
    assert list(found.changes.counts) == ["copy"]
    assert found.changes.counts["copy"][1] == tested


@pytest.mark.parametrize(
    ("numbers", "says"),
    [
        (SHARES, "a row sums to 1."),
        (SOFTMAX, "went to the zero block"),
        (SIGMOID, "a row has no fixed sum. Effective number: the sum of the gates."),
    ],
)
def test_page_and_tables_say_what_weights_are(numbers: str, says: str) -> None:
    layers = [LayerGates("mails", ["layer 0"], [[0.4, 0.3, 0.2, 0.1]], 2.0)]
    grids = [] if numbers == SHARES else [effective_grid(layers, numbers == SOFTMAX)]
    section = routing_section(ROUTING, numbers, grids)
    page = html.unescape(render([replace(RUN, sections=[section])]))
    assert says in page
    assert not any(other in page for other in {SHARES, SOFTMAX, SIGMOID} - {numbers})
    *_, last = section_tables(section)
    assert says in " ".join(shown(last).split())


def test_a_gain_of_pseudo_samples_has_a_plus() -> None:
    samples = [TaskSamples("a", 3, None, Drop(-1.7)), TaskSamples("b", 3, None, Drop(2.0))]
    (table,) = section_tables(samples_section(samples, real=True))
    assert [line.split()[-1] for line in shown(table).splitlines()[-3:-1]] == ["+1.7", "-2.0"]


def test_markdown() -> None:
    text = markdown([replace(RUN, tasks=["a|b", "<x>", "mails"]), SINGLE])
    assert text.startswith("### sapt\n\nsapt learned 3 tasks; after the last it scores 91.2")
    assert "most on a\\|b (2.5).\n\n|  | a\\|b |" in text
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


def test_scores_of_samples_have_their_error() -> None:
    sample = Sample(task=0, examples=20, of=500, error=3.96)
    lost = [Drops(Drop(2.5, 1.25), Drop(2.5, 1.25)), Drops(None, None)]
    errors = {"forgetting": 1.25}
    run = replace(RUN, samples={(1, 0): sample}, dropped=lost, standard_errors=errors)
    for text in (shown(score_table(run)), markdown([run]), render([run])):
        assert "88.0 ± 4.0" in text
        assert text.count("± 4.0") == text.count("88.0 ± 4.0") + text.count(">± 4.0<")
    assert "± 4.0" in heat_map(run.matrix, run.row_labels, run.tasks, "x", 100.0, run.samples)
    assert "lost 1.5 ± 1.2 points" in sentence(run)
    assert "most on tickets (2.5 ± 1.2)" in sentence(run)
    for text in (shown(side_by_side([run]), 200), markdown([run]), render([run])):
        assert "a score of 20 test examples, drawn from 500" in text
    assert "-2.5 ± 1.2" in shown(standings_table(run))


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
    weights = [[1 / (i + 1)] * (i + 1) for i in range(8)]
    routing = Routing(run.tasks, after=weights, now=weights)
    page = render([replace(run, sections=[routing_section(routing)])])
    assert page.count("<summary>Attention over the blocks right after learning</summary>") == 1
    assert page.count("<summary>Attention over the blocks now</summary>") == 1


def test_curves_name_every_line() -> None:
    """Also one that matplotlib would leave out by itself."""
    svg = curves([Curve(name, [(1, 50.0), (2, 60.0)]) for name in ("_a", "b")], "t", "x")
    texts = [element.text for element in ElementTree.fromstring(svg).iter()]
    assert (texts.count("_a"), texts.count("b")) == (1, 1)


def test_settings_name_what_is_not_as_published() -> None:
    ours = "`sapt` is not as published, in router.kind, router.centre"
    options = {"method.name": "sapt", "method.preset": "default"}
    assert ours in render([replace(RUN, settings=options)])
    published = METHODS["sapt"].Config(preset="paper").model_dump(mode="json")
    assert "as published" not in render([replace(RUN, settings=dict(flat({"method": published})))])
