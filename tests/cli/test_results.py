"""`make results`: its table is that of the runs, which are learned once; every documented call."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import yaml

from benchmarks import interference, results
from retain import Learner
from retain.errors import RetainError
from retain.methods.amlora.diagnostics import GATES
from retain.system.files import read_json, read_jsonl, write_jsonl
from retain.tasks import Example, Task
from retain.testing.runs import KilledError, Record, content
from retain.testing.tiny import WORDS, make_backbone, make_task
from tests.command import Called, check, settings, snapshot, write_settings

ROOT = Path(__file__).parents[2]
CONFIG = "configs/paper/exp.yaml"
OUT = Path("runs/results/paper-exp")
VARIANTS = ("seqlora", "amlora rank=2")
TITLES = ["variant", "seed", "AP", "F.Ra", "FWT", "BWT", "AP, ROUGE-L", "own block", "blocks"]
TITLES += ["trained", "MB a task", "MB kept", "minutes"]


def call(*arguments: str) -> Called:
    """`python -m benchmarks.results ARGUMENTS…`, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as end:
        results.main(arguments)
    return Called(int(end.value.code or 0), out.getvalue(), err.getvalue())


def table(text: str) -> dict[tuple[str, int], dict[str, str]]:
    """The printed lines by variant and seed, their cells by title."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert lines[0] == TITLES
    return {(line[0], int(line[1])): dict(zip(TITLES, line, strict=True)) for line in lines[1:]}


def empty(line: dict[str, str]) -> bool:
    return {line[title] for title in TITLES[2:]} == {"–"}


def wait_for(monkeypatch: pytest.MonkeyPatch, event: str) -> Record:
    """What runs tell from now on; the first such event kills the one that tells it."""
    record = Record(lambda told: told == event)
    monkeypatch.setattr(results, "ConsoleProgress", lambda *_: record)
    return record


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "ConsoleProgress", lambda *_: Record())
        yield


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, backbone_folder: Callable[[str], Path]
) -> tuple[Path, Called]:
    """A folder where two variants are learned with two seeds and pertask with one; what it said."""
    folder = tmp_path_factory.mktemp("made")
    (folder / CONFIG).parent.mkdir(parents=True)
    values = settings(backbone_folder("llama"), "copy", "letter")
    values["training"] |= {"max_steps": 6, "learning_rate": 0.04}
    values["method"] |= {"rank": 4, "target_modules": ["o_proj", "down_proj"]}
    values["evaluation"] = {"max_new_tokens": 2}
    write_settings(folder / CONFIG, values)
    for name, answers in (("copy", "bk"), ("letter", "kb")):  # as far as six steps can learn
        rows = [
            {"prompt": f"{name} {word}", "answer": answers[word[1] in "aeiou"]}
            for word in WORDS.split()
        ]
        write_jsonl(folder / f"{name}.jsonl", rows[:12])
        write_jsonl(folder / f"{name}.test.jsonl", rows[12:])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        first = call(CONFIG, "--variants", "pertask", "--seeds", "0")
        assert first.status == 0, first.err
        return folder, call(CONFIG, "--variants", *VARIANTS)


@pytest.fixture
def place(made: tuple[Path, Called], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder as working directory."""
    shutil.copytree(made[0], tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place"


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*_: object, **__: object) -> None:
        raise AssertionError("training began")

    monkeypatch.setattr("retain.learner.lesson.fit", train)


def scores(name: str, out: Path = OUT) -> Any:
    return read_json(out / name / "scores.json")


def forward(name: str, out: Path = OUT) -> str:
    """FWT by hand, over the first seed's pertask."""
    found, single = scores(name, out), scores("pertask-0")
    alone = {task: row[-1] for task, row in zip(single["tasks"], single["matrix"], strict=True)}
    rows = zip(found["tasks"], found["matrix"], strict=True)
    return f"{fmean(row[-1] - alone[task] for task, row in rows):.2f}"


def test_the_table_is_that_of_the_runs(made: tuple[Path, Called], place: Path) -> None:
    done = made[1]
    assert (done.status, done.err) == (0, "")
    lines = table(done.out)
    assert list(lines) == [(variant, seed) for variant in VARIANTS for seed in (0, 1)]
    for (variant, seed), line in lines.items():
        name = f"{variant.replace(' ', ',')}-{seed}"
        found = scores(name)
        metrics = found["metrics"]
        assert line["AP"] == f"{metrics['average_performance']:.2f}"
        assert line["F.Ra"] == f"{metrics['forgetting']:.2f}"
        assert line["BWT"] == f"{metrics['backward_transfer']:.2f}"
        assert line["FWT"] == ("–" if seed else forward(name))
        assert f"{variant} | {seed} | {json.dumps(found['matrix'])}" in done.out.splitlines()
        gates = OUT / name / "tasks" / "02-letter" / GATES
        blocks = f"{read_json(gates)['effective']:.2f}" if variant != "seqlora" else "–"
        assert line["blocks"] == blocks
    assert len({line["AP"] for line in lines.values()} - {"0.00"}) > 1  # else it says little
    assert {line["F.Ra"] for line in lines.values()} != {"0.00"}


@pytest.mark.usefixtures("place", "untrained")
def test_a_second_call_runs_nothing_again(made: tuple[Path, Called]) -> None:
    assert call(CONFIG, "--variants", *VARIANTS) == made[1]


def test_a_killed_run_goes_on(
    made: tuple[Path, Called], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = OUT / "seqlora-0"
    before = content(whole)
    shutil.rmtree(whole)
    wait_for(monkeypatch, "3 letter · learn")
    with pytest.raises(KilledError):
        results.main([CONFIG, "--variants", *VARIANTS, "--seeds", "0"])
    shown = call(CONFIG, "--variants", *VARIANTS, "--seeds", "0", "--table-only")
    assert (shown.status, shown.err) == (0, "")
    assert [empty(line) for line in table(shown.out).values()] == [True, False]
    record = wait_for(monkeypatch, "never")
    again = call(CONFIG, "--variants", *VARIANTS, "--seeds", "0")
    assert "start letter · learn" in record.events
    assert "start copy · learn" not in record.events
    assert content(whole) == before
    same = ("AP", "F.Ra", "FWT", "BWT", "MB a task", "MB kept")
    for key, line in table(again.out).items():
        assert [line[title] for title in same] == [table(made[1].out)[key][t] for t in same]


def test_another_order_has_a_folder_of_its_own(place: Path) -> None:
    before = content(OUT)
    done = call(CONFIG, "--variants", "seqlora", "--seeds", "0", "--order", "2, 1")
    assert (done.status, done.err) == (0, "")
    out = OUT.with_name("paper-exp-2,1")
    assert scores("seqlora-0", out)["tasks"] == ["letter", "copy"]
    assert table(done.out)["seqlora", 0]["FWT"] == forward("seqlora-0", out)
    assert content(OUT) == before


def test_other_settings_are_not_mixed_in(place: Path) -> None:
    changed = ["--seeds", "0", "--set", "training.max_steps=1"]
    done = call(CONFIG, "--variants", "seqlora", "inclora", *changed)
    assert done.status == 2
    other, alone = done.err.splitlines()
    says = "seqlora-0: was started with other settings (training.max_steps: 6 is now 1); use the"
    assert other.startswith("error: seqlora-0: ")
    assert f"{says} same ones, or another --output" in other
    assert alone.startswith("FWT with seed 0 is left out: ")
    lines = table(done.out)
    assert empty(lines["seqlora", 0])
    assert lines["inclora", 0]["AP"] != lines["inclora", 0]["FWT"] == "–"
    # The new run is not taken for one of the file's settings either.
    plain = call(CONFIG, "--variants", "seqlora", "inclora", "--seeds", "0", "--table-only")
    assert plain.status == 2
    assert "inclora-0: was started with other settings" in plain.err
    assert [empty(line) for line in table(plain.out).values()] == [False, True]


@pytest.mark.usefixtures("untrained")
def test_table_only_runs_nothing(place: Path) -> None:
    (place / "copy.jsonl").unlink()  # nor does it read the data
    before = snapshot(place)
    done = call(CONFIG, "--variants", "seqlora", "ewc", "--seeds", "0", "7", "--table-only")
    assert (done.status, done.err) == (0, "")
    lines = table(done.out)
    assert [key for key in lines if not empty(lines[key])] == [("seqlora", 0)]
    assert snapshot(place) == before


def test_a_run_that_fails_leaves_its_line_empty(place: Path) -> None:
    half = ["--set", "backbone.dtype=bfloat16", "--set", "training.max_steps=1", "--output", "o"]
    short = "seqft training.max_steps=2 backbone.dtype=float32 evaluation.limit=1"
    done = call(CONFIG, "--variants", "seqft", short, "inclora", "--seeds", "0", *half)
    assert done.status == 2
    (said,) = done.err.splitlines()
    assert said.startswith("error: seqft-0: ")
    lines = table(done.out)
    assert [empty(line) for line in lines.values()] == [True, False, False]
    # A variant's options for the experiment are its own.
    name = f"{short.replace(' ', ',')}-0"
    stored = [
        yaml.safe_load((Path("o/paper-exp") / run / "config.yaml").read_text())
        for run in (name, "inclora-0")
    ]
    assert [values["training"]["max_steps"] for values in stored] == [2, 1]
    assert [values["backbone"]["dtype"] for values in stored] == ["float32", "bfloat16"]
    assert [values["evaluation"]["limit"] for values in stored] == [1, None]


def test_dev_tests_on_rows_of_train(place: Path) -> None:
    numbers = [{"prompt": f"say {i}", "answer": "b"} for i in range(80)]
    write_jsonl(place / "copy.jsonl", numbers)
    values = yaml.safe_load(Path(CONFIG).read_text())
    values = {**values, "tasks": values["tasks"][:1], "training": {"max_steps": 1}}
    write_settings(place / CONFIG, values)
    done = call(CONFIG, "--variants", "seqlora", "--seeds", "0", "--dev")
    assert (done.status, done.err) == (0, "")
    task = OUT.with_name("paper-exp-dev") / "seqlora-0" / "tasks" / "01-copy"
    tested = {row["prompt"] for row in read_jsonl(task / "test.jsonl")}
    assert len(tested) == 60
    assert tested < {row["prompt"] for row in numbers}
    rows = [Example(row["prompt"], ("b",)) for row in numbers]
    moved = results.on_dev(Task("copy", rows, rows[:1], rows[:1]))
    assert (list(moved.test), list(moved.train)) == (rows[:60], rows[60:])  # not learned from


def experiment(place: Path, method: Any) -> Path:
    """The folder's experiment with another method."""
    values = yaml.safe_load((place / CONFIG).read_text())
    return write_settings(place / "other.yaml", {**values, "method": method})


def test_the_file_s_own_method_keeps_its_options(place: Path) -> None:
    method = {"name": "sapt", "rank": 4, "preset": "paper", "reflection": {"weight": 0.1}}
    path = experiment(place, method)
    assert results.experiment_of("sapt", path).method == method
    other = results.experiment_of("sapt reflection.weight=2 alpha=8", path)
    assert other.method == {**method, "reflection": {"weight": 2}, "alpha": 8}
    assert results.experiment_of("inclora", path).method == {"name": "inclora", "rank": 4}
    assert results.experiment_of("seqft", path).method == {"name": "seqft"}


@pytest.mark.parametrize("options", ["", " tune=full"])
def test_what_is_tuned_whole_takes_over_no_lora(options: str, place: Path) -> None:
    replay = {"every": 2}
    path = experiment(place, {"name": "seqlora", "rank": 4})
    assert "rank" not in results.experiment_of(f"ewc{options}", path).method
    assert results.experiment_of("ewc tune=lora", path).method["rank"] == 4
    path = experiment(place, {"name": "seekr", "tune": "lora", "rank": 4, "replay": replay})
    kept = results.experiment_of(f"derpp{options}", path).method
    assert kept["replay"] == replay
    assert (kept["tune"], kept.get("rank")) == (("full", None) if options else ("lora", 4))


def test_changes_of_the_method_reach_the_variants_that_take_them(place: Path) -> None:
    path = str(experiment(place, {"name": "seqlora"}))
    options = results.parse([path, "--variants", "sapt", "seqft", "--set", "method.rank=3"])
    runs = results.plan(options)
    assert [runs[variant, 0].method.get("rank") for variant in ("sapt", "seqft")] == [3, None]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--variants", "seqlora", "sapt rankk=3"], ["'sapt rankk=3'", "'method.rankk'"]),
        (["--variants", "seqlora", "nothing"], ["'nothing'", "choose one of"]),
        (["--variants", ""], ["choose one of"]),
        (["--variants", "sapt rank"], ["'sapt rank'", "expected FIELD=VALUE"]),
        (["--variants", "sapt training.steps=3"], ["'sapt training.steps=3'", "training.steps"]),
        (["--variants", "sapt", "--order", "2,2"], ["'order'", "from 1 to 2 once, or 'reversed'"]),
        (["--variants", "sapt", "--seeds", "-1"], ["'seed'"]),
        (["--variants", "sapt", "--set", "method.pull=1"], ["method.pull"]),
        (
            ["--variants", "inclora", "amlora", "--set", "method.rate=1", "--set", "method=l2p"],
            ["--set method.rate=1: no variant takes it over"],
        ),
        (["--variants", "sapt", "--set", "tasks=[]"], ["no field 'tasks'"]),
        (["--variants", "sapt", "--set", "tasks.0.path=gone.jsonl"], ["gone.jsonl: no such file"]),
    ],
)
@pytest.mark.usefixtures("untrained")
def test_bad_calls_are_refused_first(arguments: list[str], says: list[str], place: Path) -> None:
    before = snapshot(place)
    check(call(CONFIG, *arguments), says)
    assert snapshot(place) == before


def test_ctrl_c_ends_without_a_traceback(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("retain.learner.lesson.fit", interrupt)
    done = call(CONFIG, "--variants", "inclora")
    assert (done.status, done.out, done.err) == (130, "", "stopped; the same command goes on\n")


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ("configs/streams/superni-short.yaml", "superni-short"),
        ("./configs/paper/superni/t5.v1-sapt.yaml", "paper-superni-t5.v1-sapt"),
        ("/home/me/work/configs/streams/demo.yaml", "demo"),
        ("mine/exp.yaml", "exp"),
    ],
)
def test_folders_are_named_after_the_path_below_configs(config: str, name: str) -> None:
    assert results.folder_name(Path(config)) == name


def test_a_path_in_a_variant_makes_no_folders() -> None:
    assert results.run_name("sapt backbone.name=a/b", 1) == "sapt,backbone.name=a_b-1"


# -- What the documentation calls.

LOG = ROOT / "docs" / "experiments"  # commands as they were run on their day
DOCS = [page for page in sorted((ROOT / "docs").rglob("*.md")) if page.parent != LOG]
PAGES = [ROOT / "README.md", *DOCS]
CALL = re.compile(r"^ *((?:make results|python -m benchmarks\.results) .*)", re.MULTILINE)


def documented(text: str) -> list[str]:
    """The calls that begin a line."""
    return CALL.findall(text.replace("\\\n", " "))


def planned(line: str) -> results.Runs:
    """What the call would run; bash splits it, and what make would call is asked of make."""
    if line.startswith("make"):
        would = in_bash(line.replace("make", "make --dry-run", 1))
        (line,) = [said for said in would if "-m benchmarks.results" in said]
    words = in_bash(rf"printf '%s\n' {line.partition('benchmarks.results ')[2]}")
    return results.plan(results.parse([word for word in words if word != "…"]))


def in_bash(command: str) -> list[str]:
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.splitlines()


@pytest.mark.parametrize("page", [p for p in PAGES if documented(p.read_text("utf-8"))], ids=str)
def test_documented_calls_can_be_made(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for line in documented(page.read_text("utf-8")):
        try:
            planned(line)
        except (RetainError, SystemExit) as error:
            pytest.fail(f"{page.name}: {line}: {error}")


def test_wrong_calls_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    right, shell, *wrong = documented(
        "  make results STREAM=configs/streams/demo.yaml \\\n"
        "  METHODS='sapt \"ewc tune=lora\"' MORE=--dev # it\n"
        "python -m benchmarks.results configs/streams/demo.yaml "
        '--variants "sapt rank="{2,4} … --seeds 3\n'
        "As `make results` does, or\n"
        "make results METHODS='\"sapt rankk=2\"'\nmake results STREAM=configs/gone.yaml\n"
    )
    assert list(planned(right)) == [(v, s) for v in ("sapt", "ewc tune=lora") for s in (0, 1)]
    assert list(planned(shell)) == [("sapt rank=2", 3), ("sapt rank=4", 3)]
    assert len(wrong) == 2
    for line in wrong:
        with pytest.raises(RetainError, match=r"rankk|gone\.yaml"):
            planned(line)


# -- benchmarks/interference.py


@pytest.fixture
def reviews(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Four rows of the demo's, where `interference` looks for them."""
    monkeypatch.setattr(interference, "DATA", tmp_path)
    words = ["positive", "negative", "mixed", "mixed"]
    rows = [{"prompt": f"{w} {i} Opinion:", "answer": w} for i, w in enumerate(words)]
    for split in ("train", "test"):
        write_jsonl(tmp_path / f"reviews.{split}.jsonl", rows)
    interference.main(["write"])
    return rows


def test_the_streams_that_interfere(reviews: list[Any], tmp_path: Path) -> None:
    balance, stars = (read_jsonl(tmp_path / f"{name}.test.jsonl") for name in ("balance", "stars"))
    assert balance[0] == {"prompt": "positive 0 Balance:", "answer": "one-sided"}
    assert [row["answer"] for row in balance[1:]] == ["one-sided", "balanced", "balanced"]
    assert [row["prompt"] for row in stars] == [row["prompt"] for row in reviews]
    assert [row["answer"] for row in stars] == ["five", "one", "three", "three"]


def test_answers_in_the_other_task_s_words_are_counted(
    reviews: list[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(interference.STARS, "mixed", "half-way")
    interference.main(["write"])
    # Whatever is asked: right on half of the stars, and one of their words, but for its case.
    monkeypatch.setattr(
        "retain.evaluation.answers.answer", lambda *given: (["Half-way"] * len(given[3]), None)
    )
    run = tmp_path / "run"
    once, short = {"max_steps": 1}, {"max_new_tokens": 9}
    learner = Learner(make_backbone("llama"), "seqlora", run, training=once, evaluation=short)
    task = make_task("constant")
    for name in ("reviews", "tickets", "stars"):
        if name != "tickets":
            rows = read_jsonl(tmp_path / f"{name}.test.jsonl")
            task = replace(task, test=[Example(row["prompt"], (row["answer"],)) for row in rows])
        assert fails(capsys, "read", str(run)).startswith(f"error: {run}")
        learner.learn(replace(task, name=name))
    interference.main(["read", str(run)])
    assert capsys.readouterr().out.splitlines()[-1] == "| run | 16.7 | 0 | 0 | 50 | 100 | 0 |"


def test_missing_reviews_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(interference, "DATA", tmp_path)
    assert fails(capsys, "write").startswith(f"error: {tmp_path / 'reviews.train.jsonl'}")


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What interference says then: one line, and no table."""
    with pytest.raises(SystemExit, match="2"):
        interference.main(arguments)
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err
