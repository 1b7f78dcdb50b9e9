"""The command line on a good day: one small run, and every command on it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from retain.methods import METHODS
from retain.runs.directory import RunDirectory
from retain.testing.tiny import OPTIONS, make_task, read_files
from tests.command import call, settings, write_settings, write_tasks

ODD = "[red] 任务/1"
SAPT = {"name": "sapt", "rank": 2, **OPTIONS["sapt"]}


@pytest.fixture(scope="module")
def learned(
    tmp_path_factory: pytest.TempPathFactory, backbone_folder: Callable[[str], Path]
) -> Path:
    """A folder with `exp.yaml` and its finished run `out`: SAPT on constant and copy."""
    folder = tmp_path_factory.mktemp("cli")
    write_tasks(folder)
    values = settings(backbone_folder("llama"), "constant", "copy")
    values["tasks"][1]["name"] = ODD
    values["training"].update(max_steps=30, learning_rate=0.02)  # enough to learn the constant
    write_settings(folder / "exp.yaml", {**values, "method": SAPT})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done = call(*again())
    assert done.status == 0, done.err
    (folder / "out.txt").write_text(done.out)
    (folder / "err.txt").write_text(done.err)
    return folder


@pytest.fixture
def place(learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, for a test that changes something; the working directory."""
    shutil.copytree(learned, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place"


def again(*more: str) -> tuple[str, ...]:
    """The command that made the run."""
    return ("run", "exp.yaml", "--set", "seed=3", *more)


def read_scores(run: Path) -> dict[str, Any]:
    return json.loads((run / "scores.json").read_text())


def test_run_leaves_a_run_directory(learned: Path) -> None:
    files = set(read_files(learned / "out"))
    assert {"config.yaml", "environment.json", "scores.json", "manifest.json"} <= files
    for folder in ("tasks/01-constant", "tasks/02-red-任务-1"):
        assert {
            f"{folder}/{name}"
            for name in ("adapter_config.json", "adapter_model.safetensors", "task.json")
        } <= files
    endings = {Path(name).suffix for name in files}
    assert endings - {""} == {".json", ".jsonl", ".yaml", ".safetensors"}
    assert not any("checkpoints" in name for name in files)


def test_run_writes_the_resolved_settings(learned: Path) -> None:
    stored = yaml.safe_load((learned / "out" / "config.yaml").read_text(encoding="utf-8"))
    assert stored["seed"] == 3
    assert stored["tasks"][1]["name"] == ODD
    assert stored["training"]["max_steps"] == 30
    assert stored["training"]["save_steps"] == 100  # a default
    assert stored["method"]["name"] == "sapt"
    assert stored["method"]["router"]["hidden"] == SAPT["router"]["hidden"]
    assert stored["method"]["reflection"]["weight"] == 0.5  # a default


def test_run_scores_every_task_so_far(learned: Path) -> None:
    scores = read_scores(learned / "out")
    assert scores["tasks"] == ["constant", ODD]
    assert [len(row) for row in scores["matrix"]] == [1, 2]
    assert all(0 <= cell <= 100 for row in scores["matrix"] for cell in row)
    (a,), (b, c) = scores["matrix"]
    assert a > 0  # else the rest shows little
    assert scores["metrics"]["average_performance"] == pytest.approx((b + c) / 2)
    assert scores["metrics"]["forgetting"] == pytest.approx(a - b)
    assert scores["metrics"]["forward_transfer"] is None


def test_run_tells_what_it_does(learned: Path) -> None:
    err, out = (learned / "err.txt").read_text(), (learned / "out.txt").read_text()
    for task in ("constant", ODD):
        for phase in ("generator", "learn"):
            assert f"sapt · {task} · {phase}: trains" in err
        assert f"evaluates {task}: 3/3 examples" in err
    assert ODD in out
    assert "AP" in out


def test_version() -> None:
    assert call("--version").out == f"retain {version('retain')}\n"


def test_run_again_does_nothing_more(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read_files(place)
    monkeypatch.setattr("retain.learner.lesson.fit", None)
    done = call(*again("--resume"))
    assert done.status == 0, done.err
    assert done.out == (place / "out.txt").read_text()
    assert read_files(place) == before


@pytest.mark.parametrize("there", ["absent", "empty"])
def test_resume_of_nothing_starts(place: Path, there: str) -> None:
    if there == "empty":
        (place / "new").mkdir()
    done = call("run", "exp.yaml", "--resume", "--output", "new", "--set", "method=seqlora")
    assert done.status == 0, done.err
    assert len(read_scores(place / "new")["matrix"]) == 2


def test_learn_adds_a_task_and_keeps_the_old_files(place: Path) -> None:
    before = read_files(place / "out" / "tasks")
    scores = read_scores(place / "out")
    done = call("learn", "out", "letter.jsonl", "--name", "third", "--test", "letter.test.jsonl")
    assert done.status == 0, done.err
    after = read_files(place / "out" / "tasks")
    assert {name: after.get(name) for name in before} == before
    assert {name.split("/")[0] for name in set(after) - set(before)} == {"03-third"}
    grown = read_scores(place / "out")
    assert grown["tasks"] == [*scores["tasks"], "third"]
    assert grown["matrix"][:2] == scores["matrix"]
    assert len(grown["matrix"][2]) == 3
    assert "third" in done.out
    assert call("verify", "out").status == 0
    assert call(*again("--resume")).status == 0  # the longer run is still this experiment's


def steps_of(folder: str) -> int:
    lines = Path("out", "tasks", folder, "training.jsonl").read_text().splitlines()
    return sum(json.loads(line)["phase"] == "learn" for line in lines)


def test_learn_with_settings_of_the_task_s_own(place: Path) -> None:
    done = call("learn", "out", "letter.jsonl", "--set", "training.max_steps=1")
    assert done.status == 0, done.err
    assert (steps_of("01-constant"), steps_of("03-letter")) == (30, 1)


def test_tasks_to_come_may_change(place: Path) -> None:
    assert call("rollback", "out", "--to", "constant").status == 0
    change = ["--set", "tasks.1={path: letter.jsonl, name: third, training: {max_steps: 1}}"]
    done = call(*again("--resume", *change))
    assert done.status == 0, done.err
    assert steps_of("02-third") == 1
    assert call(*again("--resume", *change)).status == 0
    done = call(*again("--resume"))
    assert done.status == 2
    assert "task 2 (third): path: letter.jsonl is now copy.jsonl" in done.err


def test_learn_holds_out_a_test_split(place: Path) -> None:
    done = call("learn", "out", "letter.jsonl", "--metric", "rouge_l")
    assert done.status == 0, done.err
    stored = json.loads((place / "out/tasks/03-letter/task.json").read_text())
    assert stored["metric"] == "rouge_l"
    assert stored["examples"] == {"train": 11, "dev": 1, "test": 2}


@pytest.mark.parametrize(
    ("given", "metric"), [((), "rouge_l"), (("--metric", "exact_answer"), "exact_answer")]
)
def test_learn_scores_a_benchmark_by_its_reader_s_metric(
    given: tuple[str, ...], metric: str, place: Path
) -> None:
    instances = [{"input": f"Word {i}", "output": "abcd"[i % 4]} for i in range(8)]
    (place / "task7").mkdir()
    for split in ("train", "test"):
        rows = [{**row, "input": f"{split} {row['input']}"} for row in instances]
        text = json.dumps({"Definition": ["Name it."], "Instances": rows})
        (place / "task7" / f"{split}.json").write_text(text)
    done = call("learn", "out", "task7", "--set", "reader=superni", *given)
    assert done.status == 0, done.err
    stored = json.loads((place / "out/tasks/03-task7/task.json").read_text())
    assert stored["metric"] == metric


def test_eval_repeats_the_last_row_and_writes_nothing(place: Path) -> None:
    before = read_files(place)
    done = call("eval", "out")
    assert done.status == 0, done.err
    last = read_scores(place / "out")["matrix"][-1]
    assert re.findall(r"│ (\d+\.\d) +│", done.out) == [f"{score:.1f}" for score in last]
    assert ODD in done.out
    limited = call("eval", "out", "--limit", "1")
    assert "evaluates constant: 1/1 examples" in limited.err
    assert read_files(place) == before


def test_general_ability_without_the_harness(
    learned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "retain.harness.ability", raising=False)
    done = call("eval", learned, "--general", "hellaswag")
    assert (done.status, done.out) == (2, "")
    says = "eval --general: lm_eval is not installed; run: pip install 'retain[general]'"
    assert done.err == f"error: {says}\n"


def test_generate(place: Path) -> None:
    prompts = [make_task(name).test[0].prompt for name in ("copy", "constant")]
    before = read_files(place)
    plain = call("generate", "out", *prompts)
    assert plain.status == 0, plain.err
    piped = call("generate", "out", "-", stdin="\n\n".join(prompts).encode())
    assert piped.out == plain.out
    done = call("generate", "out", *prompts, "--json")
    answers = [json.loads(line) for line in done.out.splitlines()]
    assert [answer["prompt"] for answer in answers] == prompts
    assert "".join(f"{answer['output']}\n" for answer in answers) == plain.out
    for answer in answers:
        assert set(answer) == {"prompt", "output", "routing"}
        assert list(answer["routing"]) == ["constant", ODD]
        assert sum(answer["routing"].values()) == pytest.approx(1, abs=1e-5)
    assert answers[0]["routing"] != answers[1]["routing"]
    assert read_files(place) == before


def test_generate_answers_as_evaluation_did(place: Path) -> None:
    path = place / "out/tasks/02-red-任务-1/predictions/01.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    done = call("generate", "out", *[row["prompt"] for row in rows], "--json")
    answers = [json.loads(line) for line in done.out.splitlines()]
    assert [answer["output"] for answer in answers] == [row["prediction"] for row in rows]
    for answer, row in zip(answers, rows, strict=True):
        assert list(answer["routing"].values()) == pytest.approx(row["routing"], abs=1e-5)


def test_report_with_single_task_scores(place: Path) -> None:
    done = call(*again("--output", "single", "--set", "method={name: pertask, rank: 2}"))
    assert done.status == 0, done.err
    done = call("report", "out", "--single", "single")
    assert done.status == 0, done.err
    assert "FWT" in done.out
    assert "wrote out/report.html" in done.out
    scores, single = read_scores(place / "out"), read_scores(place / "single")
    diagonal = [row[-1] for row in single["matrix"]]
    assert scores["single"] == diagonal
    gains = [row[-1] - alone for row, alone in zip(scores["matrix"], diagonal, strict=True)]
    assert scores["metrics"]["forward_transfer"] == pytest.approx(sum(gains) / 2)
    page = (place / "out" / "report.html").read_text(encoding="utf-8")
    HTMLParser().feed(page)
    assert page.startswith("<!DOCTYPE html>")
    assert ODD in page
    assert call("verify", "out").status == 0
    done = call("report", "out")  # the single-task scores are kept
    assert read_scores(place / "out") == scores
    both = call("report", "out", "single", "--output", "pages/both [x].html")
    assert both.status == 0, both.err
    assert "pages/both [x].html" in both.out
    assert "pertask" in (place / "pages/both [x].html").read_text(encoding="utf-8")
    answer = call("generate", "single", "copy this word: ant", "--task", ODD, "--json")
    assert json.loads(answer.out)["routing"] == {"constant": 0.0, ODD: 1.0}


def test_report_as_markdown_is_nothing_but_markdown(place: Path) -> None:
    done = call("report", "out", "--markdown")
    assert done.status == 0, done.err
    lines = [line for line in done.out.splitlines() if line]
    assert lines[0] == "### out"
    assert all(line.startswith(("### ", "| ", "out learned ")) for line in lines)
    assert (place / "out" / "report.html").exists()


def test_report_refuses_single_scores_on_other_test_data(place: Path) -> None:
    pertask = ("--set", "method={name: pertask, rank: 2}", "--set", "evaluation.limit=1")
    assert call(*again("--output", "single", *pertask)).status == 0
    before = read_files(place)
    done = call("report", "out", "--single", "single")
    assert done.status == 2
    assert "single: has no task 'constant' with the same test data" in done.err
    assert read_files(place) == before


def test_verify_counts_the_files_and_names_a_damaged_one(place: Path) -> None:
    done = call("verify", "out")
    assert done.status == 0, done.err
    manifest = json.loads((place / "out" / "manifest.json").read_text())
    assert done.out == f"{len(manifest['files'])} files verified: all as they were written\n"
    written = set(read_files(place / "out")) - {"manifest.json", ".lock"}
    assert set(manifest["files"]) == written
    for name in ("tasks/01-constant/router.safetensors", "tasks/01-constant/pseudo.jsonl"):
        path = place / "out" / name
        content = path.read_bytes()
        path.write_bytes(content[:10] + bytes([content[10] ^ 1]) + content[11:])
        done = call("verify", "out")
        assert done.status == 2
        assert done.out.startswith(f"out/{name}: damaged")
        assert len(done.err.splitlines()) == 1
        path.write_bytes(content)
    path.unlink()
    assert call("verify", "out").out.startswith(f"out/{name}: missing")


def test_verify_names_every_file_that_fails(place: Path) -> None:
    names = ["config.yaml", "environment.json", "scores.json", "tasks/01-constant/task.json"]
    for name in names:
        with (place / "out" / name).open("ab") as file:
            file.write(b" ")
    done = call("verify", "out")
    assert [line.partition(":")[0] for line in done.out.splitlines()] == [f"out/{n}" for n in names]
    assert done.err == "error: out: 4 files failed verification (listed above)\n"


def test_what_changes_no_result_may_change_on_the_way(place: Path) -> None:
    before = read_files(place / "out")
    values = yaml.safe_load((place / "exp.yaml").read_text(encoding="utf-8"))
    values["tasks"].append({"path": "letter.jsonl", "test": "letter.test.jsonl"})
    values["training"].update(gradient_checkpointing=True, save_steps=7)
    values["evaluation"]["batch_size"] = 1
    write_settings(place / "longer.yaml", values)
    done = call("run", "longer.yaml", "--set", "seed=3", "--resume")
    assert done.status == 0, done.err
    after = read_files(place / "out")
    settings_now = yaml.safe_load(after["config.yaml"])
    assert settings_now["training"]["gradient_checkpointing"]  # `learn` needs it from now on
    assert settings_now["seed"] == yaml.safe_load(before["config.yaml"])["seed"]
    assert len(read_scores(place / "out")["matrix"]) == 3
    refused = call(*again("--resume", "--set", "training.bf16=true"))
    assert refused.status == 2
    assert "training.bf16: False is now True" in refused.err


def test_export(place: Path) -> None:
    done = call("export", "out", "adapters")
    assert done.status == 0, done.err
    assert "wrote adapters: 2 PEFT adapters" in done.out
    mixed = ("--mixture", "constant=0.5", "--mixture", f"{ODD}=0.5")
    for name, options in (("one", ("--task", ODD)), ("half", mixed)):
        done = call("export", "out", name, *options)
        assert done.status == 0, done.err
        assert (place / name / "model.safetensors").exists()
    refused = call("export", "out", "x", "--mixture", "constant")
    assert refused.status == 2
    assert "expected TASK=WEIGHT" in refused.err


def test_check_counts_what_was_lost_since_a_task_was_learned(place: Path) -> None:
    matrix = read_scores(place / "out")["matrix"]
    path = place / "out/tasks/02-red-任务-1/evaluation.json"
    row = json.loads(path.read_text(encoding="utf-8"))
    row["scores"][0] = matrix[0][0] - 30.0
    path.write_text(json.dumps(row), encoding="utf-8")
    refused = call("check", "out", "--max-forgetting", "5")
    assert refused.status == 2
    assert "damaged" in refused.err
    run = RunDirectory(place / "out")
    run.load_manifest()
    run.write({path: path.read_bytes()})
    done = call("check", "out", "--max-forgetting", "29.9")
    assert (done.status, done.out) == (1, "constant: lost 30.0 points since it was learned\n")
    done = call("check", "out", "--max-forgetting", "30")
    assert (done.status, done.out) == (0, "no task lost more than 30 points\n")
    run.commit((), ["tasks/02-red-任务-1/evaluation.json"])  # as after a crash in evaluation
    for command in (["check", "out", "--max-forgetting", "30"], ["compare", "out"]):
        done = call(*command)
        assert done.status == 2
        assert "out: its newest task is not scored yet" in done.err
    assert call("report", "out").status == 0
    page = (place / "out/report.html").read_text(encoding="utf-8")
    assert "out learned 2 tasks, the newest not scored yet; after the one before, it scores" in page


def test_rollback_makes_the_run_what_it_was(place: Path) -> None:
    first = read_scores(place / "out")["matrix"][:1]
    before = read_files(place)
    wrong = call("rollback", "out", "--to", "nothing")
    assert (wrong.status, read_files(place)) == (2, before)
    assert f"no task 'nothing'; name one of constant, {ODD}" in wrong.err
    RunDirectory.load_manifest(run := RunDirectory(place / "out"))
    run.write({place / "out" / "single.json": b"[1.0, 2.0]"})
    done = call("rollback", "out", "--to", "constant")
    assert read_scores(place / "out")["single"] is None
    assert (done.status, done.out) == (0, f"removed {ODD}\n")
    assert read_scores(place / "out")["matrix"] == first
    assert [path.name for path in (place / "out/tasks").iterdir()] == ["01-constant"]
    assert not (place / "out" / "single.json").exists()
    assert call("verify", "out").status == 0
    relearned = call(*again("--resume"))
    assert relearned.status == 0, relearned.err
    after = read_files(place / "out")
    for name in ("adapter_model.safetensors", "router.safetensors", "evaluation.json"):
        assert after[f"tasks/02-red-任务-1/{name}"] == before[f"out/tasks/02-red-任务-1/{name}"]


def test_rollback_refuses_where_older_weights_are_gone(place: Path) -> None:
    full = ("--output", "full", "--set", "method=seqft")
    assert call(*again(*full)).status == 0
    before = read_files(place)
    done = call("rollback", "full", "--to", "constant")
    assert done.status == 2
    assert "full/tasks/01-constant/model.safetensors: no longer there" in done.err
    assert read_files(place) == before


def test_methods_are_listed_a_line_each() -> None:
    done = call("methods")
    assert done.status == 0
    lines = {line.split()[0]: line for line in done.out.splitlines() if line.strip()}
    for name, method in METHODS.items():
        traits = method.traits
        assert traits.idea in lines[name]
        assert traits.stores in lines[name]
        assert ("task name" in lines[name]) == traits.needs_task_id
        assert ("old data" in lines[name]) == traits.needs_old_data
        assert ("neither" in lines[name]) == (not (traits.needs_task_id or traits.needs_old_data))


@pytest.mark.parametrize("command", [[], ["run"], ["learn"], ["generate"], ["report"]])
def test_help(command: list[str]) -> None:
    done = call(*command, "--help")
    assert done.status == 0
    assert "Usage: retain" in done.out
    assert done.err == ""


def test_installed_command() -> None:
    script = Path(sys.executable).with_name("retain")
    done = subprocess.run([script, "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "generate" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_interrupts_end_a_run_that_can_go_on(place: Path, times: int) -> None:
    command = [sys.executable, "-m", "retain", *again("--resume", "--output", "other")]
    with subprocess.Popen(
        [*command, "--set", "training.max_steps=300"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as running:
        assert running.stderr is not None
        seen, sent = "", 0
        for line in running.stderr:
            seen += line
            wanted = "trains" if sent == 0 else "Ctrl-C again"
            if sent < times and wanted in line:
                running.send_signal(signal.SIGINT)
                sent += 1
    assert running.returncode == 130
    # A second one that comes when the step is over has nothing left to stop.
    assert ("stopped after step" if times == 1 else "stopped a") in seen
    assert "Traceback" not in seen
    done = call(*again("--resume", "--output", "other", "--set", "training.max_steps=300"))
    assert done.status == 0, done.err
    assert call("verify", "other").status == 0
