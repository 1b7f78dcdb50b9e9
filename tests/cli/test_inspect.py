"""`retain inspect`: the heads of a SEEKR run, against numbers worked out by hand."""

from __future__ import annotations

import io
import json
import re
import shutil
import struct
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from rich.console import Console, Group, RenderableType
from rich.table import Table

from retain.experiment.config import ExperimentConfig, resolved
from retain.methods import METHODS
from retain.methods.amlora import diagnostics as gates
from retain.methods.seekr import diagnostics as heads
from retain.methods.seekr.diagnostics import HeadMaps, TaskHeads
from retain.methods.shared import routing_diagnostics as routing
from retain.methods.shared.module_names import short_names
from retain.report.draw_sections import drawings, grid_tables, section_tables, write_png
from retain.report.plots import _figure
from retain.runs.directory import RunDirectory
from retain.runs.results import open_run, read_required
from retain.runs.sections import Grid
from retain.system.files import write_json
from retain.testing.tiny import make_backbone, make_learner, make_task
from tests.command import call, refused

PICTURE = ("inspect", "run", "--picture", "heads.png")
T5 = [
    "encoder.block.0.layer.0.SelfAttention",
    "encoder.block.1.layer.0.SelfAttention",
    "decoder.block.0.layer.0.SelfAttention",
    "decoder.block.0.layer.1.EncDecAttention",
    "decoder.block.1.layer.0.SelfAttention",
    "decoder.block.1.layer.1.EncDecAttention",
]


def after(task: str, *chosen: str, score: float = 1.0) -> TaskHeads:
    """A task whose chosen heads are the 1s, a text a layer; its score is 1 in all but layer 0."""
    selected = [[mark == "1" for mark in row] for row in chosen]
    scores = [[1.0 if layer else score] * len(row) for layer, row in enumerate(chosen)]
    return TaskHeads(task, scores, selected)


MAPS = HeadMaps(
    "run",
    T5,
    [
        after("[red]a", "110", "000", "000", "001", "000", "000"),
        after("b", "100", "000", "000", "001", "000", "011"),
        after("c", "000", "010", "100", "010", "000", "000", score=3.0),
    ],
    examples=4,
    size=1234,
)
DECODER = [f"model.layers.{i}.self_attn" for i in range(100)]


def many(layers: int, count: int) -> HeadMaps:
    """A model of 2 heads a layer that chooses all in layer 0, in each of several tasks."""
    tasks = [after(f"task {j}", *["11"] + ["00"] * (layers - 1)) for j in range(count)]
    return HeadMaps("run", DECODER[:layers], tasks, 1, 10)


def cells(renderable: RenderableType) -> list[list[str]]:
    """The cells of a table's rows, as an 80-column terminal shows them."""
    console = Console(file=io.StringIO(), width=80, color_system=None)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    return [re.split(r" {2,}", line.strip()) for line in lines if line.strip()]


def only(grid: Grid) -> Table:
    """The one table of a narrow grid."""
    (table,) = grid_tables(grid)
    return table


def figure(maps: HeadMaps) -> Figure:
    """The picture of head maps."""
    return _figure(list(drawings([heads.heads_section(maps)])))


def size_of(picture: Path) -> tuple[int, int]:
    """Width and height of a PNG, in pixels."""
    content = picture.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", content[16:24])


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SEEKR run of two tasks."""
    folder = tmp_path_factory.mktemp("inspect") / "run"
    learner = make_learner("seekr", make_backbone("llama"), folder)
    learner.learn(make_task("copy"))
    learner.learn(make_task("letter"))
    return folder


@pytest.fixture
def place(learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a copy of it."""
    shutil.copytree(learned, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_heads_per_module_and_share() -> None:
    title, head, _, *rows = cells(only(heads.heads_grid(MAPS)))
    assert title == ["Heads chosen in each attention module, of 3"]
    assert head == ["[red]a", "b", "c", "share of score"]
    share = "12.5%"  # 3 of 24: layer 0 has 9, each of the others 3
    assert rows == [
        ["encoder.0.Self", "2", "1", "0", "37.5%"],
        ["encoder.1.Self", "0", "0", "1", share],
        ["decoder.0.Self", "0", "0", "1", share],
        ["decoder.0.EncDec", "1", "1", "1", share],
        ["decoder.1.Self", "0", "0", "0", share],
        ["decoder.1.EncDec", "0", "2", "0", share],
        ["all", "3", "4", "3", "100.0%"],
    ]


def test_a_model_that_did_not_move_has_no_shares() -> None:
    still = TaskHeads("a", [[0.0, 0.0]] * 2, [[True, False], [False, False]])
    rows = cells(only(heads.heads_grid(HeadMaps("run", DECODER[:2], [still], 1, 1))))[-3:]
    assert rows == [["layer 0", "1", "0.0%"], ["layer 1", "0", "0.0%"], ["all", "1", "0.0%"]]


def test_overlap() -> None:
    _, head, _, *rows = cells(only(heads.overlap_grid(MAPS)))
    assert head == ["1", "2", "3"]
    assert rows == [
        ["1 [red]a", "1.00", "0.40", "0.00"],  # 2 heads of both, 5 of either
        ["2 b", "0.40", "1.00", "0.00"],
        ["3 c", "0.00", "0.00", "1.00"],
    ]


def test_depth_sentence_counts_modules_in_calling_order() -> None:
    assert heads.depth_sentence(MAPS) == (
        "Heads chosen after c: 3, of them 1 (33%) in the 2 attention modules called first, "
        "2 (67%) in the 2 called in the middle, 0 (0%) in the 2 called last."
    )


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, [1]), (2, [0, 2]), (3, [0, 1, 2]), (4, [0, 1, 1, 2]), (5, [0, 0, 1, 2, 2])],
)
def test_thirds(count: int, expected: list[int]) -> None:
    assert heads.thirds(count) == expected


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        (DECODER[:1], ["layer 0"]),
        ([DECODER[2], DECODER[10]], ["layer 2", "layer 10"]),
        (["transformer.h.0.attn", "transformer.h.1.attn"], ["layer 0", "layer 1"]),
        (
            ["model.decoder.layers.0.self_attn", "model.decoder.layers.0.encoder_attn"],
            ["0.self", "0.encoder"],
        ),
        (["a.0.attn.0", "a.0.attn.1"], ["0.0", "0.1"]),
        (["a.0.attn", "b.attention"], ["a.0.attn", "b.attention"]),
    ],
)
def test_short_names(modules: list[str], expected: list[str]) -> None:
    assert short_names(modules) == expected


def test_many_modules_share_rows() -> None:
    title, _, _, *rows = cells(only(heads.heads_grid(many(layers=41, count=1))))
    assert title == ["Heads chosen in 2 attention modules per row, of 2 each"]
    assert len(rows) == 21 + 1
    assert rows[0] == ["layer 0 +1", "2", "4.9%"]
    assert rows[-2] == ["layer 40", "0", "2.4%"]


def test_many_tasks_are_cut_into_tables() -> None:
    rows = cells(Group(*section_tables(heads.heads_section(many(layers=2, count=7)))))
    assert [len(row) - 1 for row in rows if row[0] == "layer 0"] == [6, 2]  # the share comes last
    assert [len(row) - 1 for row in rows if row[0] == "7 task 6"] == [6, 1]
    whole = section_tables(heads.heads_section(many(2, 7)), 7)
    assert [len(table.columns) - 1 for table in whole] == [8, 7]


def test_reading_agrees_with_the_files(learned: Path) -> None:
    maps = heads.read_heads(open_run(learned))
    assert maps.label == "run"
    assert maps.modules == DECODER[:2]
    folders = [learned / "tasks" / name for name in ("01-copy", "02-letter")]
    for task, folder in zip(maps.tasks, folders, strict=True):
        stored = json.loads((folder / "heads.json").read_text())
        assert task.task == folder.name[3:]
        assert task.score == stored["score"]
        assert task.selected == stored["selected"]
        assert len(task.chosen) == 4
    kept = [path for folder in folders for path in (folder / "teacher").iterdir()]
    kept += [folder / "memory.jsonl" for folder in folders]
    assert maps.examples == len(kept) - 2 == 4
    assert maps.size == sum(path.stat().st_size for path in kept)


def test_command(place: Path) -> None:
    before = json.loads((place / "run" / "manifest.json").read_text())
    done = call("inspect", "run", "--picture", "pictures/heads.png")
    assert done.status == 0, done.err
    maps = heads.read_heads(open_run(place / "run"))
    *_, depth, memory, wrote = done.out.splitlines()
    assert "Heads chosen in each attention module, of 4" in done.out
    assert "Overlap of the chosen heads (Jaccard)" in done.out
    assert heads.SCORE in " ".join(done.out.split())
    assert depth == heads.depth_sentence(maps)
    assert wrote == "wrote pictures/heads.png"
    assert memory == (
        f"Memory: 4 examples, {maps.size:,} bytes with the teacher's outputs on them; "
        "this is user data, to be treated like the training data."
    )
    assert min(size_of(place / "pictures/heads.png")) > 300
    assert json.loads((place / "run" / "manifest.json").read_text()) == before
    assert call("inspect", "run").out == done.out.replace(f"{wrote}\n", "")


def test_picture_shows_the_last_eight_tasks() -> None:
    eight, nine = figure(many(3, 8)), figure(many(3, 9))
    assert tuple(eight.get_size_inches()) == tuple(nine.get_size_inches())
    texts = [text.get_text() for text in nine.findobj(Text)]
    assert "run: attention heads, last 8 of 9 tasks" in texts
    assert "task 8" in texts
    assert "task 0" not in texts


def test_picture_of_thirty_layers(tmp_path: Path) -> None:
    write_png([heads.heads_section(many(layers=30, count=3))], tmp_path / "heads.png")
    width, height = size_of(tmp_path / "heads.png")
    assert 1000 < width < 3000
    assert 1000 < height < 1500


def test_picture_outlines_the_chosen_heads() -> None:
    drawn = figure(MAPS)
    outlines = drawn.axes[0].collections
    assert [len(each.get_paths()) for each in outlines] == [3, 4, 3]
    maps = [image.get_array() for image in drawn.axes[0].images[:3]]
    assert [values.shape for values in maps] == [(6, 3)] * 3
    assert maps[2].max() == 1
    assert maps[2].min() == pytest.approx(1 / 3)


def test_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(*PICTURE, says=["run: no such run folder; check the path"])


@pytest.mark.parametrize("method", ["seqlora", "seekr", "sapt"])
def test_run_without_a_task(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = RunDirectory(Path("run"))
    values = resolved(ExperimentConfig(backbone="tiny", method={"name": method}))
    write_json(run.path / "config.yaml", values.model_dump(mode="json"))
    run.commit([run.path / "config.yaml"])
    refused(*PICTURE, says=["run: nothing to inspect yet; let it finish a task"])


def test_a_method_that_never_shows_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_learner("seqlora", make_backbone("llama"), Path("run")).learn(make_task("copy"))
    says = "run: method 'seqlora' has nothing to inspect; retain report shows its scores"
    refused(*PICTURE, says=[says])
    refused("inspect", "run", "--task", "copy", says=[says])


@pytest.mark.parametrize("name", ["heads.json", "memory.jsonl", "teacher/0001.safetensors"])
def test_damaged_and_missing_files_are_named(place: Path, name: str) -> None:
    path = Path("run/tasks/02-letter") / name
    path.write_bytes(path.read_bytes()[:-3])
    says = [f"{path}: damaged (its checksum does not match); restore it from a copy of the run"]
    refused(*PICTURE, says=says)
    path.unlink()
    refused(*PICTURE, says=[f"{path}: missing; restore it from a copy of the run"])


@pytest.mark.parametrize("content", ["null", "{}", '{"modules": 1, "score": 1, "selected": 1}'])
def test_heads_of_another_shape(place: Path, content: str) -> None:
    run = open_run(Path("run"))
    path = run.path / "tasks/02-letter/heads.json"
    run.write({path: content.encode()})
    done = call("inspect", "run")
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith(f"error: {path}: not as retain writes it (")


def by_layer(folder: Path, has_zero: bool) -> list[gates.LayerGates]:
    """The gates that an AM-LoRA run keeps of each task."""
    run = open_run(folder)
    return [
        gates._layer_gates(
            place.name, read_required(run, place / gates.GATES, gates.Gates), has_zero
        )
        for place in run.learned()
    ]


def test_a_method_that_is_not_installed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but what the method itself shows is there."""
    monkeypatch.delitem(METHODS, "seekr")
    run = open_run(place / "run")
    path = place / "run" / "config.yaml"
    run.write({path: path.read_bytes().replace(b"plugins: []", b"plugins: [mine]")})
    done = call("inspect", "run")
    assert done.status == 0, done.err
    assert done.out == (
        "What the method itself shows is left out. run/config.yaml: the method 'seekr' comes with "
        "a plugin, which may run any code; if you trust it, add --plugin mine (the module, "
        "or the path of its file; in Python: import "
        "it first).\n"
    )
    done = call("report", "run")
    assert done.status == 0, done.err
    assert "AP: average score" in done.out
    assert "the method &#39;seekr&#39; comes with" in (place / "run/report.html").read_text()


@pytest.mark.parametrize("method", ["sapt", "amlora", "amlora-instance"])
def test_a_pools_attention(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Right after learning and now, as evaluation saw it; by layer for AM-LoRA."""
    monkeypatch.chdir(tmp_path)
    learner = make_learner(method, make_backbone("llama"), tmp_path / "run")
    for name in ("copy", "letter"):
        learner.learn(make_task(name))
    found = routing.read_routing(open_run(tmp_path / "run"))
    assert found is not None
    assert found.tasks == ["copy", "letter"]
    assert [len(row) for row in found.after] == [1, 2]
    assert [len(row) for row in found.now] == [2, 2]
    assert found.after[1] == found.now[1]
    asked = learner.answers([example.prompt for example in make_task("copy").test])
    weights = [list(answer.routing.values()) for answer in asked]
    expected = [sum(column) / len(weights) for column in zip(*weights, strict=True)]
    assert found.now[0] == pytest.approx(expected, abs=1e-5)
    done = call("inspect", tmp_path / "run", "--picture", tmp_path / "r.png")
    assert done.status == 0, done.err
    assert f"{found.now[0][1]:.2f}" in done.out
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    assert (method == "sapt") == ("user data" in done.out)
    numbers = {
        "sapt": routing.SHARES,
        "amlora": gates.SIGMOID,
        "amlora-instance": gates.SOFTMAX,
    }
    assert numbers[method] in " ".join(done.out.split())
    if method != "sapt":
        softmax = method == "amlora-instance"  # with a zero block, which sigmoids do not have
        first, last = by_layer(tmp_path / "run", softmax)
        assert last.layers == ["layer 0", "layer 1"]
        assert [len(row) for row in last.gates] == [2 + softmax] * 2
        sums = [sum(row) for row in last.gates]
        assert all((total == pytest.approx(1, abs=1e-5)) == softmax for total in sums)
        if softmax:
            assert 1 < last.effective <= 3
        else:
            assert last.effective == pytest.approx(sum(sums) / 2, abs=1e-5)
        assert ("zero block" in done.out) == softmax
        assert "Gates by layer of letter" in done.out
        done = call("inspect", tmp_path / "run", "--task", "copy", "--picture", tmp_path / "r.png")
        assert done.status == 0, done.err
        assert "Gates by layer of copy" in done.out
        assert f"{first.gates[0][-1]:.2f}" in done.out
        refused(
            "inspect", tmp_path / "run", "--task", "no", says=["no task 'no'; name one of copy"]
        )
    else:
        says = ["method 'sapt' shows no task in detail; leave --task out"]
        refused("inspect", tmp_path / "run", "--task", "copy", says=says)
