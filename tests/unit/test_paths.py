"""Paths: how they are given, what is refused, where an output may go, where a backbone is found."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from retain.backbone.place import path_of
from retain.errors import RetainError
from retain.runs import outputs
from retain.runs.backbone_path import found_from, is_same, stored_name
from retain.runs.directory import RunDirectory
from retain.runs.manifest import MANIFEST, NAME
from retain.runs.records import ENVIRONMENT
from retain.runs.results import open_run, settings
from retain.system import files
from retain.system.paths import expanded
from retain.system.yaml_text import parse_yaml
from retain.tasks.readers import read_rows


@pytest.mark.parametrize("text", ["", " ", "\t", "a\0b", "~nosuchuser", "~nosuchuser/x"])
def test_a_path_that_leads_nowhere(text: str) -> None:
    with pytest.raises(ValueError, match="; "):
        expanded(text)


def test_home_is_expanded_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert expanded("~/runs") == Path("/home/me/runs")
    for text in (".", "..", "/", "a~b", "$HOME", "a*"):
        assert expanded(text) == Path(text)
    assert expanded("./~x") == Path.cwd() / "~x"


# -- what is no file


@pytest.fixture(params=["fifo", "socket"])
def special(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)  # a socket's name may not be long
    if request.param == "fifo":
        os.mkfifo("x.jsonl")
    else:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind("x.jsonl")
    return "x.jsonl"


def test_nothing_waits_for_what_is_no_file(special: str) -> None:
    path = Path(special)
    for read in (files.read_text, files.read_json, files.read_jsonl, read_rows):
        with pytest.raises(RetainError, match=r"^x\.jsonl: "):
            read(path)
    with pytest.raises(RetainError, match=r"x\.jsonl: cannot be written"):
        files.write_text(path, "new")
    assert not path.is_file()
    with pytest.raises(RetainError, match=r"x\.jsonl: is no file"):
        path_of(".")
    Path(MANIFEST).write_text("{}")
    with pytest.raises(RetainError, match=r"x\.jsonl: is no file, which a run may not contain"):
        open_run(Path())


@pytest.mark.parametrize("target", ["/dev/null", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_a_device_is_not_replaced(target: str) -> None:
    with pytest.raises(RetainError, match=f"^{target}: cannot be written .*choose another"):
        files.write_text(Path(target), "new")


def test_a_pipe_without_a_name_is_read() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"seed: 1\n")
    os.close(writer)
    assert files.read_text(Path(f"/dev/fd/{reader}")) == "seed: 1\n"
    os.close(reader)


# -- outputs


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    (folder / "tasks" / "01-a").mkdir(parents=True)
    for name in (MANIFEST, ENVIRONMENT, "config.yaml", "tasks/01-a/task.json"):
        (folder / name).write_text("{}")
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "manifest.json",
        "config.yaml",
        "scores.json",
        ".lock",
        "tasks/01-a/task.json",
        "tasks/x.html",
        "compact/01.safetensors",
    ],
)
def test_a_run_s_own_files_are_no_targets(run: Path, name: str) -> None:
    for path in (run / name, run / "tasks" / ".." / name):
        with pytest.raises(RetainError, match="is a file of the run"):
            outputs.check_outputs((path, outputs.PAGE))
    link = run.parent / "link"
    link.symlink_to(run)
    with pytest.raises(RetainError, match="is a file of the run"):
        outputs.check_outputs((link / name, outputs.PAGE))


@pytest.mark.parametrize("name", [".", "..", "/", "run", "run/.."])
def test_a_folder_is_no_target(run: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parent)
    with pytest.raises(RetainError, match="cannot be written"):
        outputs.check_outputs((Path(name), outputs.PAGE))


def test_what_a_killed_command_left_of_an_output_is_deleted(run: Path) -> None:
    page = run.parent / "page.html"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = page.with_name(f".page.html.{ended.pid}.tmp")
    of_others = [
        page.with_name(f".page.html.{os.getppid()}.tmp"),  # of a process that runs
        *(page.with_name(name) for name in (".page.html.tmp", f".other.{ended.pid}.tmp")),
    ]
    for path in (left, *of_others):
        path.write_text("")
    outputs.check_outputs((page, outputs.PAGE))
    assert not left.exists()
    assert all(path.exists() for path in of_others)


def test_an_output_replaces_its_own_kind_only(run: Path) -> None:
    page, thesis = run / "report.html", run.parent / "t.jsonl"
    outputs.check_outputs((page, outputs.PAGE), (None, outputs.PICTURE))
    for content in (b"", outputs.PAGE + b"<html>"):
        page.write_bytes(content)
        outputs.check_outputs((page, outputs.PAGE))
    thesis.write_text('{"prompt": "p"}')
    for kind in (outputs.PAGE, outputs.PICTURE, outputs.COMPARE_CSV, outputs.SWEEP_JSON):
        with pytest.raises(RetainError, match="exists, and is of another kind"):
            outputs.check_outputs((thesis, kind))
    with pytest.raises(RetainError, match="is named for two outputs"):
        outputs.check_outputs((run / "x", outputs.PAGE), (run / "." / "x", outputs.COMPARE_CSV))


def test_a_folder_in_a_run_is_no_place_for_another(run: Path) -> None:
    outputs.check_folder(run)
    outputs.check_folder(run.parent / "other")
    for folder in (run / "exported", run / "tasks" / "02-b"):
        with pytest.raises(RetainError, match="lies in the run"):
            outputs.check_folder(folder)
    (run / ENVIRONMENT).unlink()  # a manifest.json may be anybody's
    outputs.check_folder(run / "exported")


# -- where a backbone is


@pytest.mark.parametrize(
    "name", ["./x", "../x", "x/y/z", "/nowhere/x", "~/x", "~nosuchuser/x", "a b", "x" * 300, "a\0b"]
)
def test_a_path_is_never_asked_of_a_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/nowhere")
    with pytest.raises(RetainError, match=r"backbone .*; ") as refusal:
        path_of(name)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["gpt2", "org/model", "HuggingFaceTB/SmolLM2-135M", "a/b.c_d"])
def test_a_hub_s_id_stays_one(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert path_of(name) == Path(name)
    assert stored_name(name, tmp_path / "run") == name
    assert found_from(tmp_path / "run", name) == name


@pytest.mark.parametrize("name", ["models/x", "./models/x", "models/../models/x"])
def test_a_backbone_is_found_from_its_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, elsewhere = (tmp_path / part for part in ("first", "second", "elsewhere"))
    (first / "models" / "x").mkdir(parents=True)
    elsewhere.mkdir()
    monkeypatch.chdir(first)
    stored = stored_name(name, Path("runs/r"))
    assert stored == "./models/x"
    assert stored_name(name, tmp_path / "outside") == str(first / "models" / "x")
    assert is_same(name, stored)
    for project in (first, second):
        monkeypatch.chdir(elsewhere)
        if project == second:
            shutil.move(first, second)
        assert found_from(project / "runs" / "r", stored) == str(project / "models" / "x")
    monkeypatch.chdir(second)  # a run that was copied out of its project
    assert found_from(elsewhere / "r", stored) == stored
    assert path_of(stored).is_dir()
    monkeypatch.chdir(elsewhere)
    with pytest.raises(RetainError, match=r"backbone \./models/x: no such file or folder"):
        path_of(found_from(elsewhere / "r", stored))


def test_a_folder_that_is_no_model_is_passed_by(tmp_path: Path) -> None:
    run, near, far = (tmp_path / name for name in ("a/b/run", "a/b/x", "a/x"))
    near.mkdir(parents=True)
    assert found_from(run, "./x") == str(near)  # which the error names
    far.mkdir()
    (far / "config.json").touch()
    assert found_from(run, "./x") == str(far)


# -- a run from elsewhere


def sealed(folder: Path, name: str, content: str) -> RunDirectory:
    run = RunDirectory(folder)
    files.write_text(folder / name, content)
    run.commit([folder / name])
    return run


BOMBS = {
    "sequences": "a: &a0 [x]\n"
    + "".join(f"b{i}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]\n" for i in range(9)),
    "mappings": "a: &a0 {x: 1}\n"
    + "".join(
        f"b{i}: &a{i + 1} {{{', '.join(f'k{j}: *a{i}' for j in range(9))}}}\n" for i in range(9)
    ),
    "merges": "a: &a0 {x: 1}\n"
    + "".join(f"b{i}: &a{i + 1} {{<<: [{', '.join([f'*a{i}'] * 9)}]}}\n" for i in range(9)),
    "a long text": "a: " + "x" * 1_000_001,
    "depth": "[" * 5000,
    "digits": "seed: " + "9" * 5000,
    "digits in base 16": "seed: 0x" + "f" * 5000,
    "digits in base 60": "seed: " + ":".join(["59"] * 4000),
}


@pytest.mark.parametrize("what", BOMBS)
def test_a_bomb_in_the_settings_is_one_line(tmp_path: Path, what: str) -> None:
    run = sealed(tmp_path, "config.yaml", BOMBS[what])
    with pytest.raises(RetainError, match=r"config\.yaml: .*; restore it from a copy$") as refusal:
        settings(run)
    assert "\n" not in str(refusal.value)


def test_aliases_in_settings_are_read(tmp_path: Path) -> None:
    assert parse_yaml("a: &x [1, 2]\nb: [*x, *x]", most=20)["b"] == [[1, 2], [1, 2]]


def test_numbers_with_colons_are_texts() -> None:
    """YAML 1.1 reads them as numbers of base 60."""
    assert parse_yaml("[12:30, 1:30.5, -1:2:3, 12, 1.5]") == ["12:30", "1:30.5", "-1:2:3", 12, 1.5]


def test_a_json_file_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LARGEST_JSON", 2**20)
    (tmp_path / "a.json").write_text(f"[{'0,' * 2**19} 0]")
    with pytest.raises(RetainError, match=r"a\.json: not readable as JSON \(it has more than 1 MB"):
        files.read_json(tmp_path / "a.json")


def test_a_task_s_number_has_few_digits() -> None:
    assert NAME.fullmatch("tasks/000000001-a/task.json")
    assert not NAME.fullmatch(f"tasks/{'1' * 5000}-a/task.json")
