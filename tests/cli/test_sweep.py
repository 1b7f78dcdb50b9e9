"""`retain sweep`: its result is that of the runs, which are learned once; every documented call."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
import yaml
from rich.console import Console

from benchmarks import interference
from retain import Learner
from retain.cli import learning
from retain.cli.shared import progress_for
from retain.errors import RetainError
from retain.runs.records import Sample, read_record
from retain.sweep import table as tables
from retain.sweep.measure import Collector
from retain.sweep.plan import Experiment, Plan, plan_sweep
from retain.sweep.result import SWEEP, Sweep
from retain.sweep.run import on_dev
from retain.system.files import read_json, read_jsonl, write_jsonl
from retain.tasks import Example, Task
from retain.testing.runs import KilledError, Record, content
from retain.testing.tiny import WORDS, make_backbone, make_task
from tests.command import Called, call, check, forget_plugins, settings, snapshot, write_settings

ROOT = Path(__file__).parents[2]
CONFIG = Path("configs/exp.yaml")
OUT = Path("runs/sweep/exp")
VARIANTS = ("seqlora", "amlora rank=2")
TITLES = ["variant", "seed", *tables.COLUMNS.values()]


def sweep(*arguments: str) -> Called:
    """`retain sweep CONFIG ARGUMENTS… --markdown`, in this process."""
    return call("sweep", CONFIG, *arguments, "--markdown")


def table(text: str) -> dict[tuple[str, str], dict[str, str]]:
    """The Markdown lines by variant and seed, their cells by title."""
    rows = text.split("\n\n")[0].splitlines()  # without the footnotes
    lines = [line.strip("| ").split(" | ") for line in rows]
    assert lines[0] == TITLES
    return {
        (line[0].strip("`"), line[1]): dict(zip(TITLES, line, strict=True)) for line in lines[2:]
    }


def empty(line: dict[str, str]) -> bool:
    return {line[title] for title in TITLES[2:]} == {"–"}


def wait_for(monkeypatch: pytest.MonkeyPatch, event: str) -> Record:
    """What runs report from now on; the first such event kills the one that reports it."""
    record = Record(lambda reported: reported == event)
    monkeypatch.setattr(learning, "progress_for", lambda _: record)
    return record


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learning, "progress_for", lambda _: Record())
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
        first = sweep("--variants", "pertask", "--seeds", "0")
        assert first.status == 0, first.err
        return folder, sweep("--variants", *VARIANTS)


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


def result(out: Path = OUT) -> Sweep:
    return read_record(Sweep, out / SWEEP)


def states(out: Path = OUT) -> list[str]:
    return [run.status for run in result(out).runs]


def forward(name: str, out: Path = OUT) -> str:
    """FWT by hand, over the first seed's pertask."""
    learned, single = scores(name, out), scores("pertask-0")
    alone = {task: row[-1] for task, row in zip(single["tasks"], single["matrix"], strict=True)}
    rows = zip(learned["tasks"], learned["matrix"], strict=True)
    return f"{fmean(row[-1] - alone[task] for task, row in rows):.2f}"


def test_the_table_is_that_of_the_runs(made: tuple[Path, Called], place: Path) -> None:
    done = made[1]
    assert done.status == 0
    lines = table(done.out)
    seeds = ("0", "1", "mean")
    assert list(lines) == [(variant, seed) for variant in VARIANTS for seed in seeds]
    runs = {(run.variant, str(run.seed)): run for run in result().runs}
    for (variant, seed), run in runs.items():
        line = lines[variant, seed]
        name = f"{variant.replace(' ', ',')}-{seed}"
        stored = scores(name)
        metrics = stored["metrics"]
        assert line["AP"] == f"{metrics['average_performance']:.2f}"
        assert line["F.Ra"] == f"{metrics['forgetting']:.2f}"
        assert line["BWT"] == f"{metrics['backward_transfer']:.2f}"
        assert line["FWT"] == ("–" if seed == "1" else forward(name))
        assert (line["own block"] == "–") == (variant == "seqlora")
        assert (run.path, run.status, run.tasks) == (str(OUT / name), "finished", stored["tasks"])
        assert run.matrix == stored["matrix"]
        assert run.measures is not None
        assert run.measures.average_performance == metrics["average_performance"]
    assert len({lines[key]["AP"] for key in runs} - {"0.00"}) > 1  # else it says little
    assert {lines[key]["F.Ra"] for key in runs} != {"0.00"}


@pytest.mark.usefixtures("place")
def test_the_mean_is_over_the_seeds(made: tuple[Path, Called]) -> None:
    lines = table(made[1].out)
    for variant in VARIANTS:
        both = [scores(f"{variant.replace(' ', ',')}-{seed}")["metrics"] for seed in (0, 1)]
        values = [metrics["average_performance"] for metrics in both]
        assert lines[variant, "mean"]["AP"] == f"{fmean(values):.2f} ± {stdev(values):.2f}"
        assert lines[variant, "mean"]["FWT"] == "–"  # only one seed has one


@pytest.mark.usefixtures("place", "untrained")
def test_every_table_is_made_from_the_json(made: tuple[Path, Called]) -> None:
    stored = result()
    assert tables.as_markdown(stored) == made[1].out
    done = call("sweep", CONFIG, "--variants", *VARIANTS, "--json", "a.json", "--csv", "a.csv")
    assert done.status == 0
    assert read_record(Sweep, Path("a.json")) == stored
    with open("a.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    for row, run in zip(rows, stored.runs, strict=True):
        assert run.measures is not None
        assert float(row["average_performance"]) == run.measures.average_performance
        assert (row["run"], row["variant"], row["seed"]) == (run.path, run.variant, str(run.seed))
    # For people: the same lines in three tables, without the columns that no run has.
    shown = [re.split(r"  +", line.strip()) for line in done.out.splitlines()]
    for part in (TITLES[2:6], TITLES[6:8], TITLES[8:]):
        assert ["seed", *part] in shown
        for (variant, seed), line in table(made[1].out).items():
            assert [variant, seed, *(line[title] for title in part)] in shown
    alone = stored.model_copy(update={"runs": stored.runs[:2], "variants": {"seqlora": {}}})
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(tables.terminal_tables(alone))
    text = console.export_text()
    assert [title for title in TITLES[1:] if title not in text] == ["own block"]
    assert "…" not in text


@pytest.mark.usefixtures("place", "untrained")
def test_what_rests_on_samples_has_its_error() -> None:
    stored = result()
    samples = [[], [Sample(task=0, examples=3, of=9, error=2.0)]]
    changed = {"samples": samples, "standard_errors": {"forgetting": 1.25}}
    runs = [run.model_copy(update=changed if run.seed == 0 else {}) for run in stored.runs]
    sampled = stored.model_copy(update={"runs": runs})
    before, after = table(tables.as_markdown(stored)), table(tables.as_markdown(sampled))
    for key, line in before.items():
        error = " ± 1.25" if key[1] == "0" else ""
        assert after[key] == {**line, "F.Ra": line["F.Ra"] + error}
    assert "drawn from 9" in tables.as_markdown(sampled)
    rows = list(csv.DictReader(io.StringIO(tables.as_csv(sampled))))
    assert [row["forgetting_standard_error"] for row in rows] == ["1.25", "", "1.25", ""]


@pytest.mark.usefixtures("place", "untrained")
def test_a_run_without_an_average_is_explained() -> None:
    stored = result()
    assert "AP: –" not in tables.as_markdown(stored)
    first, *others = stored.runs
    assert first.measures is not None
    measures = first.measures.model_copy(update={"average_performance": None})
    runs = [first.model_copy(update={"measures": measures}), *others]
    assert "AP: – where" in tables.as_markdown(stored.model_copy(update={"runs": runs}))


@pytest.mark.parametrize(
    ("variant", "says"),
    [
        ("seqlora", None),  # no preset
        ("progprompt hidden=800 rate=1.0", None),  # as the preset has it
        ("sapt preset=paper", None),
        ("ewc preset=trace", "is as preset=trace has it, not as the method's own paper"),
        ("ewc preset=trace weight=1", "is not as published, in weight"),
        ("sapt preset=paper router.rate=0.5", "is not as published, in router.rate"),
        (
            "sapt",
            "is not as published, in router.kind, router.centre, router.key, router.rate, "
            "generator.target, generator.rate, reflection.tasks; preset=paper has the published "
            "ones",
        ),
    ],
)
def test_a_row_of_retain_s_own_options_says_so(variant: str, says: str | None, place: Path) -> None:
    """A line named after a paper must not pass for the paper's."""
    config = with_method(place, "seqlora")
    for variants in ([variant], [variant, "pertask"]):  # a lone method is among the settings
        swept = Collector(plan(config, *variants)).collect()
        notes = [f"`{variant}` {says}"] if says else []
        assert tables.footnotes(swept) == notes
        listed = [line for line in tables.as_markdown(swept).splitlines() if line[:2] == "- "]
        assert listed == [f"- {note}" for note in notes]


@pytest.mark.usefixtures("place")
def test_the_json_says_what_was_run() -> None:
    stored = result()
    assert (stored.files, stored.dev, stored.seeds) == ([str(CONFIG)], False, [0, 1])
    assert stored.settings["training"]["max_steps"] == 6
    assert [task["path"] for task in stored.settings["tasks"]] == ["copy.jsonl", "letter.jsonl"]
    ranks = {name: values["method"]["rank"] for name, values in stored.variants.items()}
    assert ranks == {"seqlora": 4, "amlora rank=2": 2}


@pytest.mark.usefixtures("place", "untrained")
def test_a_second_call_runs_nothing_again(
    made: tuple[Path, Called], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("the backbone was loaded")

    monkeypatch.setattr(Learner, "load", load)
    before = (OUT / SWEEP).read_bytes()
    assert sweep("--variants", *VARIANTS) == made[1]
    assert (OUT / SWEEP).read_bytes() == before


@pytest.mark.usefixtures("place")
def test_a_killed_run_goes_on(made: tuple[Path, Called], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = OUT / "seqlora-0"
    before = content(whole)
    shutil.rmtree(whole)
    wait_for(monkeypatch, "3 letter · learn")
    with pytest.raises(KilledError):
        sweep("--variants", *VARIANTS, "--seeds", "0")
    assert states() == ["missing", "finished"]
    shown = sweep("--variants", *VARIANTS, "--seeds", "0", "--table-only")
    assert shown.status == 0
    assert [empty(line) for line in table(shown.out).values()] == [True, False]
    record = wait_for(monkeypatch, "never")
    again = sweep("--variants", *VARIANTS, "--seeds", "0")
    assert "start letter · learn" in record.events
    assert "start copy · learn" not in record.events
    assert content(whole) == before
    same = ("AP", "F.Ra", "FWT", "BWT", "MB per task", "MB kept")
    for key, line in table(again.out).items():
        assert [line[title] for title in same] == [table(made[1].out)[key][t] for t in same]


@pytest.mark.usefixtures("place")
def test_the_result_is_renewed_after_every_run(monkeypatch: pytest.MonkeyPatch) -> None:
    out = Path("o/exp")
    seen: list[list[str]] = []

    class Watch(Record):
        def start(self, label: str, total: int, unit: str) -> None:
            seen.append(states(out))

    monkeypatch.setattr(learning, "progress_for", lambda _: Watch())
    short = ["--set", "training.max_steps=1", "--output", "o"]
    assert sweep("--variants", "seqlora", "inclora", "--seeds", "0", *short).status == 0
    assert [seen[0], seen[-1], states(out)] == [
        ["missing", "missing"],
        ["finished", "missing"],
        ["finished", "finished"],
    ]


@pytest.mark.usefixtures("place")
def test_another_order_has_a_folder_of_its_own() -> None:
    before = content(OUT)
    done = sweep("--variants", "seqlora", "--seeds", "0", "--order", "2, 1")
    assert (done.status, done.err) == (0, "")
    out = OUT.with_name("exp-2,1")
    assert scores("seqlora-0", out)["tasks"] == ["letter", "copy"]
    assert table(done.out)["seqlora", "0"]["FWT"] == forward("seqlora-0", out)
    assert content(OUT) == before


@pytest.mark.usefixtures("place")
def test_other_settings_are_not_mixed_in() -> None:
    variants = ["--variants", "seqlora", "seqlora rank=2", "--seeds", "0"]
    done = sweep(*variants, "--set", "training.max_steps=1")
    assert done.status == 2
    alone, other = done.err.splitlines()
    says = "was started with other settings (training.max_steps: 6 is now 1); use the same ones"
    assert alone.startswith("warning: no forward transfer with seed 0: ")
    assert other == f"error: {OUT}/seqlora-0: {says}, or another --output"
    first, second = table(done.out).values()
    assert empty(first)
    assert second["AP"] != second["FWT"] == "–"
    assert states() == ["failed", "finished"]
    # The new run is not taken for one of the file's settings either.
    plain = sweep(*variants, "--table-only")
    assert plain.status == 2
    assert "seqlora,rank=2-0: was started with other settings" in plain.err
    assert [empty(line) for line in table(plain.out).values()] == [False, True]


@pytest.mark.usefixtures("place", "untrained")
def test_other_data_is_not_mixed_in() -> None:
    write_jsonl(Path("copy.jsonl"), [{"prompt": "copy this", "answer": "b"}] * 9)
    done = sweep("--variants", "seqlora", "--seeds", "0")
    assert done.status == 2
    assert "seqlora-0: its task 1 was learned from other data than 'copy' has now" in done.err


@pytest.mark.usefixtures("place", "untrained")
def test_a_run_of_a_longer_stream_is_refused() -> None:
    values = yaml.safe_load(CONFIG.read_text())
    write_settings(CONFIG, {**values, "tasks": values["tasks"][:1]})
    done = sweep("--variants", "seqlora", "--seeds", "0")
    assert done.status == 2
    assert "seqlora-0: has learned 2 tasks, and the stream has 1; roll it back" in done.err


@pytest.mark.usefixtures("untrained")
def test_table_only_runs_nothing(place: Path) -> None:
    (place / "copy.jsonl").unlink()  # nor does it read the data
    before = snapshot(place)
    done = sweep("--variants", "seqlora", "ewc", "--seeds", "0", "7", "--table-only")
    assert (done.status, done.err) == (0, "")
    lines = table(done.out)
    assert [key for key in lines if not empty(lines[key])] == [("seqlora", "0")]
    assert snapshot(place) == before


@pytest.mark.usefixtures("place")
def test_a_run_that_fails_leaves_its_line_empty() -> None:
    half = ["--set", "backbone.dtype=bfloat16", "--set", "training.max_steps=1", "--output", "o"]
    own = ["backbone.dtype=float32", "evaluation.limit=1", "tasks.*.metric=rouge_l"]
    short = " ".join(["seqft training.max_steps=2", *own])
    done = sweep("--variants", "seqft", short, "seqlora", "--seeds", "0", *half)
    assert done.status == 2
    (error,) = done.err.splitlines()
    assert error.startswith("error: o/exp/seqft-0: ")
    assert [empty(line) for line in table(done.out).values()] == [True, False, False]
    # A variant's options for the experiment are only for it.
    name = f"{short.replace(' ', ',').replace('*', 'all')}-0"
    stored = [
        yaml.safe_load((Path("o/exp") / run / "config.yaml").read_text())
        for run in (name, "seqlora-0")
    ]
    assert [values["training"]["max_steps"] for values in stored] == [2, 1]
    assert [values["backbone"]["dtype"] for values in stored] == ["float32", "bfloat16"]
    assert [values["evaluation"]["limit"] for values in stored] == [1, None]
    metrics = [[task.get("metric") for task in values["tasks"]] for values in stored]
    assert {*metrics[0]} == {"rouge_l"} != {*metrics[1]}


@pytest.mark.usefixtures("place")
def test_dev_tests_on_rows_of_train() -> None:
    numbers = [{"prompt": f"say {i}", "answer": "b"} for i in range(80)]
    write_jsonl(Path("copy.jsonl"), numbers)
    values = yaml.safe_load(CONFIG.read_text())
    values = {**values, "tasks": values["tasks"][:1], "training": {"max_steps": 1}}
    write_settings(CONFIG, values)
    done = sweep("--variants", "seqlora", "--seeds", "0", "--dev")
    assert (done.status, done.err) == (0, "")
    out = OUT.with_name("exp-dev")
    assert result(out).dev
    tested = {row["prompt"] for row in read_jsonl(out / "seqlora-0" / "tasks/01-copy/test.jsonl")}
    assert len(tested) == 60
    assert tested < {row["prompt"] for row in numbers}
    rows = [Example(row["prompt"], ("b",)) for row in numbers]
    moved = on_dev(Task("copy", rows, rows[:1], rows[:1]))
    assert (list(moved.test), list(moved.train)) == (rows[:60], rows[60:])  # not learned from


def plan(config: Path, *variants: str, changes: tuple[str, ...] = ()) -> Plan:
    return plan_sweep(Experiment([config], changes), variants, [0], Path("o"))


def with_method(place: Path, method: Any) -> Path:
    """The folder's experiment with another method."""
    values = yaml.safe_load((place / CONFIG).read_text())
    return write_settings(place / "other.yaml", {**values, "method": method})


def test_a_variant_is_what_retain_run_makes(place: Path) -> None:
    method = {"name": "sapt", "rank": 4, "preset": "paper", "reflection": {"weight": 0.1}}
    variants = ["sapt", "sapt reflection.weight=2 alpha=8", "inclora", "inclora rank=2"]
    runs = plan(with_method(place, method), *variants).runs
    assert [run.experiment.method for run in runs] == [
        method,
        {**method, "reflection": {"weight": 2}, "alpha": 8},
        {"name": "inclora"},
        {"name": "inclora", "rank": 2},
    ]


def test_a_stream_and_a_recipe(place: Path, backbone_folder: Callable[[str], Path]) -> None:
    values = yaml.safe_load((place / CONFIG).read_text())
    stream = {key: values[key] for key in ("tasks", "evaluation")}
    write_settings(place / "two.yaml", {**stream, "orders": {"back": ["letter", "copy"]}})
    recipe = {
        "backbones": {"tiny": str(backbone_folder("llama")), "other": str(place)},
        "training": {"max_steps": 1},
        "cases": [{"when": {"method": "olora"}, "training": {"learning_rate": 0.5}}],
    }
    write_settings(place / "recipe.yaml", recipe)
    files = [Path("two.yaml"), Path("recipe.yaml")]
    names = ["--variants", "inclora", "olora", "olora training.learning_rate=0.25", "--seeds", "3"]
    done = call("sweep", *files, *names, "--backbone", "tiny", "--order", "back", "--markdown")
    assert (done.status, done.err) == (0, "")
    out = Path("runs/sweep/two-back")
    assert result(out).files == ["two.yaml", "recipe.yaml"]
    runs = [
        yaml.safe_load((Path(run.path) / "config.yaml").read_text()) for run in result(out).runs
    ]
    rates = [run["training"]["learning_rate"] for run in runs]
    assert rates == [rates[0], 0.5, 0.25]
    assert [task["path"] for task in runs[0]["tasks"]] == ["letter.jsonl", "copy.jsonl"]
    check(call("sweep", *files, *names), ["field 'backbone'"])
    check(call("sweep", files[0], Path("no.yaml"), *names), ["no.yaml: no such file"])


def test_methods_of_a_plugin(place: Path) -> None:
    (place / "swept.py").write_text(
        "from retain.methods import register\nfrom retain.methods.seqlora import SeqLora\n"
        "@register('swept')\nclass Swept(SeqLora):\n    pass\n"
    )
    arguments = ["--variants", "swept rank=2", "--seeds", "0", "--set", "training.max_steps=1"]
    check(call("sweep", CONFIG, *arguments), ["no method 'swept'"])
    try:
        done = sweep(*arguments, "--plugin", "swept.py")
    finally:
        forget_plugins()
    assert done.status == 0
    assert states() == ["finished"]


def test_options_that_stay_behind_are_reported(place: Path) -> None:
    method = {"name": "sapt", "rank": 4, "alpha": 16, "reflection": {"tasks": 2}}
    variants = ["inclora", "sapt", "olora rank=2", "ewc", "ewc tune=lora"]
    says = "does not take over rank=4, which the files have for sapt; to share that, give"
    assert plan(with_method(place, method), *variants).warnings == [
        f"variant '{name}' {says} '{name} rank=4'" for name in ("inclora", "ewc tune=lora")
    ]


def test_a_change_is_for_every_variant(place: Path) -> None:
    runs = plan(place / CONFIG, "sapt", "inclora", changes=("method.rank=3",)).runs
    assert [run.experiment.method["rank"] for run in runs] == [3, 3]
    with pytest.raises(RetainError, match=r"variant 'seqft': .*rank"):
        plan(place / CONFIG, "sapt", "seqft", changes=("method.rank=3",))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--variants", "seqlora", "sapt rankk=3"], ["'sapt rankk=3'", "'method.rankk'"]),
        (["--variants", "seqlora", "nothing"], ["'nothing'", "choose one of"]),
        (["--variants", ""], ["variant ''", "begin it with one of"]),
        (["--variants"], ["--variants"]),
        ([], ["--variants"]),
        (["--variants", "sapt rank"], ["'sapt rank'", "expected FIELD=VALUE"]),
        (["--variants", "sapt training.steps=3"], ["'sapt training.steps=3'", "training.steps"]),
        (["--variants", "sapt", "--order", "2,2"], ["'order'", "from 1 to 2 once, or 'reversed'"]),
        (["--variants", "sapt", "--seeds", "-1"], ["--seeds", "greater than or equal to 0"]),
        (["--variants", "sapt", "--seeds", "1", "0", "1"], ["--seeds: 1 is there twice"]),
        (["--variants", "sapt", "--set", "method.pull=1"], ["method.pull"]),
        (["--variants", "sapt", "--set", "method=l2p"], ["--set method=l2p: use --variants"]),
        (["--variants", "sapt", "--set", "seed=3"], ["--set seed=3: use --seeds"]),
        (["--variants", "sapt", "--set", "tasks=[]"], ["no field 'tasks'"]),
        (["--variants", "seqlora", "--set", "tasks.0.path=gone.jsonl"], ["gone.jsonl: no such"]),
        (
            ["--variants", "seqlora", "ewc", "seqlora  rank=4"],
            ["variants 'seqlora' and 'seqlora rank=4' are the same run"],
        ),
        (
            ["--variants", "seqlora backbone.name=a/b", "seqlora backbone.name=a_b"],
            ["would share the folder"],
        ),
    ],
)
@pytest.mark.usefixtures("untrained")
def test_bad_calls_are_refused_first(arguments: list[str], says: list[str], place: Path) -> None:
    before = snapshot(place)
    check(call("sweep", CONFIG, *arguments), says)
    assert snapshot(place) == before


@pytest.mark.usefixtures("place")
def test_ctrl_c_stops_after_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    class Impatient(Record):
        def update(self, done: int, parts: Any = None) -> None:
            self.stopping = True

    monkeypatch.setattr(learning, "progress_for", lambda _: Impatient())
    arguments = ["--variants", "seqlora rank=2", "seqlora rank=3", "--seeds", "0"]
    done = sweep(*arguments)
    assert (done.status, done.out) == (130, "")
    assert done.err.startswith("stopped after step 2 of 6; to continue, give the same command")
    assert states() == ["missing", "missing"]
    record = wait_for(monkeypatch, "never")
    assert sweep(*arguments).status == 0
    learned = [event for event in record.events if event.endswith("copy · learn")]
    assert learned[:2] == ["start copy · learn", "3 copy · learn"]  # two steps were kept
    record.stopping = True  # between two runs
    assert sweep(*arguments).err.startswith("stopped before seqlora,rank=2-0; ")


@pytest.mark.usefixtures("place")
def test_ctrl_c_twice_ends_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("retain.learner.lesson.fit", interrupt)
    done = sweep("--variants", "seqlora rank=2")
    assert (done.status, done.out) == (130, "")
    assert done.err.startswith("stopped at once; to continue, give the same command")


def test_lines_begin_with_the_run_s_name(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(learning, "progress_for", progress_for)
        done = sweep(
            "--variants", "seqlora rank=2", "--seeds", "0", "--set", "training.max_steps=1"
        )
    assert done.status == 0
    assert any(line.startswith("seqlora,rank=2-0 · copy · ") for line in done.err.splitlines())


def test_a_path_in_a_variant_makes_no_folders(place: Path) -> None:
    (run,) = plan(place / CONFIG, "sapt  backbone.name=a/b").runs
    assert run.folder == Path("o/exp/sapt,backbone.name=a_b-0")


# -- What the documentation calls.

LOG = ROOT / "docs" / "experiments"  # commands as they were run on their day
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
CALL = re.compile(r"^ *((?:make results|retain sweep) .*)", re.MULTILINE)


def documented(text: str) -> list[str]:
    """The calls that begin a line."""
    return CALL.findall(text.replace("\\\n", " "))


def planned(line: str) -> list[tuple[str, int]]:
    """What the call would run; bash splits it, and what make would call is asked of make."""
    if line.startswith("make"):
        would = in_bash(line.replace("make", "make --dry-run", 1))
        (line,) = [command for command in would if "/retain sweep" in command]
    words = in_bash(rf"printf '%s\n' {line.partition('retain sweep ')[2]}")
    plans: list[Plan] = []

    def stop(plan: Plan, _: object) -> None:
        plans.append(plan)
        raise RetainError("planned")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("retain.sweep.run.learn_sweep", stop)
        done = call("sweep", *(word for word in words if word not in ("…", "--table-only")))
    if not plans:
        raise RetainError(done.err)
    return [(run.variant, run.seed) for run in plans[0].runs]


def in_bash(command: str) -> list[str]:
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    "page",
    [p for p in PAGES if p.parent != LOG and documented(p.read_text("utf-8"))],
    ids=lambda page: page.stem,
)
def test_documented_calls_can_be_made(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for line in documented(page.read_text("utf-8")):
        try:
            planned(line)
        except RetainError as error:
            pytest.fail(f"{page.name}: {line}: {error}")


def test_wrong_calls_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    right, shell, *wrong = documented(
        "  make results STREAM=configs/streams/demo.yaml \\\n"
        "  METHODS='sapt \"ewc tune=lora\"' MORE=--dev # it\n"
        'retain sweep configs/streams/demo.yaml --variants "sapt rank="{2,4} … --seeds 3\n'
        "As `make results` does, or\n"
        "make results METHODS='\"sapt rankk=2\"'\nmake results STREAM=configs/gone.yaml\n"
    )
    assert planned(right) == [(v, s) for v in ("sapt", "ewc tune=lora") for s in (0, 1)]
    assert planned(shell) == [("sapt rank=2", 3), ("sapt rank=4", 3)]
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
