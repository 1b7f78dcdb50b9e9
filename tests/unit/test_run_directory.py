"""The run directory: checksums, numbered folders, one writer."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from retain.errors import RetainError
from retain.runs import directory as store
from retain.runs import manifest
from retain.runs.directory import RunDirectory
from retain.system import files
from retain.testing.tiny import read_files


def make_run(path: Path, **texts: str) -> RunDirectory:
    """A run with committed files of these names (`__` stands for `/`) and texts."""
    run = RunDirectory(path)
    paths = [path / name.replace("__", "/") for name in texts]
    for place, text in zip(paths, texts.values(), strict=True):
        files.write_text(place, text)
    run.commit(paths)
    return run


# -- the manifest


def test_manifest_lists_checksums_and_its_own(tmp_path: Path) -> None:
    make_run(tmp_path, **{"a.txt": "one", "tasks__01-x__b": "two"})
    values = json.loads((tmp_path / "manifest.json").read_text())
    assert set(values) == {"format", "files", "sha256"}
    assert values["files"] == {
        "a.txt": "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed",
        "tasks/01-x/b": "3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3",
    }
    run = RunDirectory(tmp_path)
    run.load_manifest()
    assert run.files == values["files"]
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
    monkeypatch.setattr(manifest, "FORMAT", 99)
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


def test_a_committed_file_is_replaced_by_write_only(tmp_path: Path) -> None:
    run = make_run(tmp_path, **{"a.txt": "one"})
    with pytest.raises(ValueError, match=r"committed already: a\.txt"):
        run.commit([tmp_path / "a.txt"])
    run.write({tmp_path / "a.txt": b"two", tmp_path / "b.txt": b"new"})
    assert not run.damaged()
    assert set(json.loads((tmp_path / "manifest.json").read_text())) == {
        "format",
        "files",
        "sha256",
    }
    assert sorted(run.files) == ["a.txt", "b.txt"]


def half_changed(path: Path, *, at_next: bool) -> RunDirectory:
    """A run that was killed while it replaced a file and deleted a task."""
    run = make_run(path, **{"a.txt": "one", "tasks__01-x__task.json": "t", "single.json": "s"})
    next_sum = hashlib.sha256(b"two").hexdigest()
    run._write_manifest(
        {"a.txt": run.files["a.txt"]},
        {"a.txt": next_sum, "tasks/01-x": None, "single.json": None},
    )
    if at_next:
        files.write_text(path / "a.txt", "two")
    return run


@pytest.mark.parametrize("at_next", [False, True])
def test_a_change_that_was_cut_off_is_valid_and_completed(tmp_path: Path, at_next: bool) -> None:
    half_changed(tmp_path, at_next=at_next)
    run = RunDirectory(tmp_path)
    run.load_manifest()
    assert run.damaged() == []
    assert run.is_going(tmp_path / "tasks" / "01-x" / "task.json")
    assert not run.is_going(tmp_path / "a.txt")
    with run.locked():
        assert run.changing == {}
    assert not (tmp_path / "tasks" / "01-x").exists()
    assert set(read_files(tmp_path)) == {"a.txt", "manifest.json", ".lock"}
    again = RunDirectory(tmp_path)
    again.load_manifest()
    assert (again.files, again.changing) == (run.files, {})
    assert again.damaged() == []
    assert (again.files["a.txt"] == hashlib.sha256(b"two").hexdigest()) == at_next


def test_damage_to_a_file_that_was_to_change_is_named(tmp_path: Path) -> None:
    run = half_changed(tmp_path, at_next=False)
    files.write_text(tmp_path / "a.txt", "three")
    for _ in range(2):
        assert [line.partition(": ")[2][:7] for line in run.damaged()] == ["damaged"]
        with run.locked():
            pass


@pytest.mark.parametrize(
    "changing",
    [
        {"../outside": None},
        {"tasks/01-x/../../../outside": None},
        {".": None},
        {"tasks": None},
        {"manifest.json": None},
        {"/etc/hostname": "sum"},
        {"a.txt": 1},
        ["a.txt"],
    ],
)
def test_a_manifest_changes_nothing_else(tmp_path: Path, changing: Any) -> None:
    run = make_run(tmp_path / "run", **{"a.txt": "one"})
    files.write_text(tmp_path / "outside", "mine")
    values = {"format": manifest.FORMAT, "files": run.files, "changing": changing}
    values["sha256"] = manifest._own_checksum(values)
    files.write_json(run.path / manifest.MANIFEST, values)
    before = read_files(tmp_path)
    with pytest.raises(RetainError, match=r"manifest\.json: (names a file outs|lists no files)"):
        RunDirectory(run.path).load_manifest()
    with pytest.raises(RetainError, match=r"manifest\.json: "), run.locked():
        pass
    assert read_files(tmp_path).keys() - before.keys() <= {"run/.lock"}


def test_task_folder_is_committed_without_its_unfinished_work(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    folder = run.task_folder(0, "x")
    for name in ("task.json", "sub/a", "checkpoints/b", ".a.json.1.tmp"):
        files.write_text(folder / name, name)
    run.commit_folder(folder, leave_out="checkpoints")
    assert set(run.files) == {"tasks/01-x/task.json", "tasks/01-x/sub/a"}


def test_what_a_killed_writer_left_goes(tmp_path: Path) -> None:
    run = make_run(tmp_path, **{"a.txt": "one"})
    tasks = tmp_path / "tasks"
    left = [tmp_path / ".manifest.json.1.tmp", tasks / "01-x" / ".a.2.tmp", tasks / ".02-y.3.tmp/a"]
    others = tmp_path / ".notes.tmp"
    for path in (*left, others):
        files.write_text(path, "half")
    with run.locked():
        assert not any(path.exists() for path in left)
    assert others.exists()
    assert (tmp_path / "a.txt").exists()


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
    files.write_text(path / "task.json", "{}")
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


@pytest.mark.parametrize(
    "name",
    ["../outside", "/etc/hostname", "tasks/../../outside", f"tasks/{'1' * 5000}-x/task.json"],
)
def test_a_manifest_names_no_file_outside_of_the_run(tmp_path: Path, name: str) -> None:
    (tmp_path / "outside").write_text("x")
    run = make_run(tmp_path / "run", a="x")
    run.files[name] = run.files["a"]
    run.commit(())
    with pytest.raises(RetainError, match=r"names a file outside of the run \('"):
        RunDirectory(tmp_path / "run").load_manifest()


@pytest.mark.parametrize(
    "name", ["manifest.json", ".lock", "a", "tasks", "tasks/02-x", "tasks/01-x/b"]
)
def test_a_link_in_a_run_is_refused(tmp_path: Path, name: str) -> None:
    """Even to the very same content; and nothing is made or deleted where it leads."""
    run = make_run(tmp_path / "run", a="x", **{"tasks__01-x__b": "y"})
    place, outside = run.path / name, tmp_path / "outside"
    if place.exists():
        place.rename(outside)
    elif name.startswith("tasks"):
        outside.mkdir()
    before = read_files(tmp_path)
    place.symlink_to(outside)
    with pytest.raises(RetainError, match=f"{place}: is a link"):
        RunDirectory(run.path).load_manifest()
    with pytest.raises(RetainError, match=f"{place}: is a link"), run.locked():
        pass
    place.unlink()
    assert read_files(tmp_path) == before


# -- a folder that others have files in


@pytest.mark.parametrize(
    "names",
    [
        ("tasks/01-x/task.json",),
        ("tasks/mine/notes.txt",),
        ("config.yaml",),
        ("environment.json", "config.yaml", "tasks/01-x/task.json"),
        ("environment.json", "scores.json"),
        ("a photo.jpg",),
        (".git/config",),
    ],
)
def test_a_folder_of_files_without_a_manifest_is_not_written_to(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    for name in names:
        files.write_text(tmp_path / name, "precious")
    before = read_files(tmp_path)
    run = RunDirectory(tmp_path)
    says = f"{tmp_path}: has files but no manifest.json; .*restore that.* another --output"
    with pytest.raises(RetainError, match=says):
        run.refuse_foreign()
    with pytest.raises(RetainError, match=says), run.locked():
        pass
    assert read_files(tmp_path).keys() - before.keys() <= {store.LOCK}


def test_what_a_kill_before_the_first_commit_leaves_is_no_obstacle(tmp_path: Path) -> None:
    for name in ("environment.json", "config.yaml", ".lock"):
        files.write_text(tmp_path / name, "x")
    for name in ("environment.json", "config.yaml", "manifest.json"):
        files.write_text(tmp_path / f".{name}.123.tmp", "half")
    with RunDirectory(tmp_path).locked():
        pass
    assert set(read_files(tmp_path)) == {"environment.json", "config.yaml", ".lock"}


def test_a_task_is_committed_without_what_others_put_there(tmp_path: Path) -> None:
    """A name that would not be read back makes no manifest that is refused."""
    run = RunDirectory(tmp_path)
    folder = run.task_folder(0, "x")
    for name in ("task.json", "my notes.txt", "n" * 61, ".cache/a", "a b/c"):
        files.write_text(folder / name, "x")
    (folder / "link").symlink_to(folder / "task.json")
    run.commit_folder(folder, "checkpoints")
    assert set(run.files) == {"tasks/01-x/task.json"}
