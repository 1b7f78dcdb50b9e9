"""The run directory: atomic writes, checksums, numbered folders, one writer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from retain import store
from retain.errors import RetainError
from retain.store import RunDirectory
from tests.tiny import read_files


def make_run(path: Path, **texts: str) -> RunDirectory:
    """A run with committed files of these names (`__` stands for `/`) and texts."""
    run = RunDirectory(path)
    files = [path / name.replace("__", "/") for name in texts]
    for file, text in zip(files, texts.values(), strict=True):
        store.write_text(file, text)
    run.commit(files)
    return run


# -- writing


def test_written_values_read_back(tmp_path: Path) -> None:
    value = {"a": [1, None, "ü任"], "b": 0.1}
    store.write_json(tmp_path / "new" / "a.json", value)
    assert store.read_json(tmp_path / "new" / "a.json") == value
    store.write_jsonl(tmp_path / "a.jsonl", [value, "line\nbreak"])
    assert store.read_jsonl(tmp_path / "a.jsonl") == [value, "line\nbreak"]
    tensors = {"x": torch.arange(6.0).view(2, 3).T, "y": torch.tensor([1, 2])}
    store.write_tensors(tmp_path / "a.safetensors", tensors)
    read = store.read_tensors(tmp_path / "a.safetensors")
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    assert set(read) == set(tensors)
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "a.json"
    store.write_json(path, "old")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, step, stop)
    with pytest.raises(KeyboardInterrupt):
        store.write_json(path, "new")
    monkeypatch.undo()
    assert store.read_json(path) == "old"
    store.write_json(path, "new")
    assert store.read_json(path) == "new"


def test_content_is_synced_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, events = tmp_path / "a", []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("replace"), replace(a, b)))
    store.write_bytes(path, b"x")
    assert events == ["fsync", "replace", "fsync"]  # the last one is the folder's


def test_unwritable_place_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "taken", tmp_path / "file" / "a"):
        with pytest.raises(RetainError, match=f"{path}: cannot be written .*choose another"):
            store.write_text(path, "new")
    assert read_files(tmp_path) == {"file": b"x"}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_refuses_what_is_no_number(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        store.write_json(tmp_path / "a.json", value)
    with pytest.raises(ValueError, match="JSON"):
        store.write_jsonl(tmp_path / "a.jsonl", [value])
    assert not list(tmp_path.iterdir())


# -- reading


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    for read in (store.read_json, store.read_jsonl, store.read_tensors, store.read_text):
        with pytest.raises(RetainError, match=f"{tmp_path / 'gone'}: no such file; "):
            read(tmp_path / "gone")
        with pytest.raises(RetainError, match=str(tmp_path)):
            read(tmp_path)
    bad = tmp_path / "bad"
    for content in (b"", b"{", b"\xff\xfe\x00", b"[" * 100_000):
        bad.write_bytes(content)
        with pytest.raises(RetainError, match=f"{bad}: not readable as JSON .*restore"):
            store.read_json(bad)
        with pytest.raises(RetainError, match=f"{bad}: damaged .*restore"):
            store.read_tensors(bad)
    store.write_tensors(bad, {"x": torch.ones(100)})
    bad.write_bytes(bad.read_bytes()[:-1])
    with pytest.raises(RetainError, match=f"{bad}: damaged"):
        store.read_tensors(bad)


def test_jsonl_errors_name_the_line_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('\ufeff{"a": 1}\r\n\n{"a":}\n', encoding="utf-8", newline="")
    with pytest.raises(RetainError, match=f"{path}, line 3: not valid JSON"):
        store.read_jsonl(path)
    path.write_bytes(b'{"a": 1}\n\n{"a": "\xe9"}\n')
    with pytest.raises(RetainError, match=f"{path}, line 3: not UTF-8 .*save the file as UTF-8"):
        store.read_jsonl(path)
    path.write_text('\ufeff{"a": 1}\r\n\n{"b": "\u2028"}', encoding="utf-8", newline="")
    assert store.numbered_jsonl(path) == [(1, {"a": 1}), (3, {"b": "\u2028"})]


# -- the manifest


def test_manifest_lists_checksums_and_its_own(tmp_path: Path) -> None:
    make_run(tmp_path, **{"a.txt": "one", "tasks__01-x__b": "two"})
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert set(manifest) == {"format", "files", "sha256"}
    assert manifest["files"] == {
        "a.txt": "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed",
        "tasks/01-x/b": "3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3",
    }
    run = RunDirectory(tmp_path)
    run.load_manifest()
    assert run.files == manifest["files"]
    assert run.damaged() == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"a.txt"', '"b.txt"'),
        ('"format": 1', '"format": 2'),
        ('"sha256": "', '"sha256": "0'),
        ("{", "["),
        ('"sha256"', '"sha"'),
    ],
)
def test_edited_manifest_is_refused(tmp_path: Path, old: str, new: str) -> None:
    make_run(tmp_path, **{"a.txt": "one"})
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(RetainError, match=f"{path}: .*; restore it"):
        RunDirectory(tmp_path).load_manifest()


def test_manifest_of_another_format_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "FORMAT", 99)
    make_run(tmp_path, **{"a.txt": "one"})
    monkeypatch.undo()
    with pytest.raises(RetainError, match=r"manifest.json: format 99, .* use the version"):
        RunDirectory(tmp_path).load_manifest()


def test_damaged_committed_files_are_named(tmp_path: Path) -> None:
    run = make_run(tmp_path, **{"a.txt": "one", "b.txt": "two", "c__d.txt": "three"})
    (tmp_path / "a.txt").write_text("oNe")
    (tmp_path / "c" / "d.txt").unlink()
    (tmp_path / "not-committed").write_text("x")
    lines = run.damaged()
    assert [line.partition(":")[0] for line in lines] == [
        str(tmp_path / "a.txt"),
        str(tmp_path / "c/d.txt"),
    ]
    assert "damaged" in lines[0]
    assert "missing" in lines[1]
    run.check("b.txt")
    with pytest.raises(RetainError, match=r"d\.txt: missing; restore it"):
        run.check("c/")


def test_commit_renews_a_checksum(tmp_path: Path) -> None:
    run = make_run(tmp_path, **{"a.txt": "one"})
    store.write_text(tmp_path / "a.txt", "two")
    assert run.damaged()
    run.commit([tmp_path / "a.txt"])
    assert not run.damaged()


def test_task_folder_is_committed_without_its_unfinished_work(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    folder = run.task_folder(0, "x")
    for name in ("task.json", "sub/a", "checkpoints/b", ".a.json.1.tmp"):
        store.write_text(folder / name, name)
    run.commit_folder(folder, leave_out="checkpoints")
    assert set(run.files) == {"tasks/01-x/task.json", "tasks/01-x/sub/a"}


@pytest.mark.parametrize("name", ["gone", "empty"])
def test_folder_that_is_no_run_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RetainError, match=f"{tmp_path / name}: .*; check the path"):
        RunDirectory(tmp_path / name).load_manifest()


def test_file_in_the_run_folder_s_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(RetainError, match=f"{tmp_path / 'file'}: is a file"):
            RunDirectory(path)


# -- one writer


def test_second_writer_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    lock = str(tmp_path / store.LOCK)
    other = (  # what `locked` holds, without the time that importing retain takes
        "from filelock import FileLock\n"
        f"with FileLock({lock!r}): print('mine', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", other], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "mine\n"
        run = RunDirectory(tmp_path)
        with pytest.raises(RetainError, match=f"{tmp_path}: another process"), run.locked():
            pass
        process.kill()
    with run.locked():  # a killed writer leaves the run free
        pass


# -- folder names


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("tickets", "tickets"),
        ("../x", "x"),
        ("../../etc/passwd", "etc-passwd"),
        ("/abs", "abs"),
        ("a/b", "a-b"),
        ("a\\b", "a-b"),
        ("a\nb\0c", "a-b-c"),
        ("  ", "task"),
        ("", "task"),
        (".", "task"),
        ("..", "task"),
        ("😀", "task"),
        ("情感分类", "情感分类"),
        ("-rf", "rf"),
        ("x" * 500, "x" * 40),
        ("任" * 500, "任" * 40),
    ],
)
def test_slug(name: str, folder: str) -> None:
    assert store.slug(name) == folder


@pytest.mark.parametrize("name", ["../x", "..", "a/b", " ", "😀", "情感", "n" * 5000, "a\0b", "/"])
def test_hostile_names_stay_inside_the_run(tmp_path: Path, name: str) -> None:
    run = RunDirectory(tmp_path / "run")
    path = run.task_folder(0, name)
    store.write_text(path / "task.json", "{}")
    assert path.resolve().parent == (tmp_path / "run" / "tasks").resolve()
    run.commit_folder(path, "checkpoints")
    assert run.learned() == [path]


def test_names_that_differ_in_punctuation_do_not_collide(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    names = ["a/b", "a b", "a-b", "a:b", "😀", "🙃"]
    assert len({run.task_folder(i, name) for i, name in enumerate(names)}) == len(names)


def test_tasks_are_found_in_the_order_they_were_learned(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    folders = [run.task_folder(i, "t") for i in (0, 1, 8, 9, 10, 98, 99, 100, 109)]
    run.files = {f"{folder.relative_to(tmp_path)}/task.json": "" for folder in folders[::-1]}
    run.files["config.yaml"] = ""
    assert run.learned() == folders


# -- runs from elsewhere, whose manifest is in order


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "tasks/../../outside"])
def test_a_manifest_names_no_file_outside_of_the_run(tmp_path: Path, name: str) -> None:
    (tmp_path / "outside").write_text("x")
    run = make_run(tmp_path / "run", a="x")
    run.files[name] = run.files["a"]
    run.commit(())
    with pytest.raises(RetainError, match=r"names a file outside of the run \('"):
        RunDirectory(tmp_path / "run").load_manifest()


def test_a_link_out_of_the_run_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("x")
    run = make_run(tmp_path / "run", a="x", b="y")
    (tmp_path / "run" / "a").unlink()
    (tmp_path / "run" / "a").symlink_to(tmp_path / "outside")  # of the very same content
    with pytest.raises(RetainError, match=r"run/a: leads out of the run"):
        run.check()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_are_finite(tmp_path: Path, value: float) -> None:
    path = tmp_path / "a.safetensors"
    store.write_tensors(path, {"x": torch.tensor([1.0, value]), "y": torch.tensor([1])})
    with pytest.raises(RetainError, match="'x' holds numbers that are not finite; restore it"):
        store.read_weights(path)
    assert store.read_tensors(path)["y"].item() == 1
