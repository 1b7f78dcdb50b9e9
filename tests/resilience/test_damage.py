"""Every file of a run damaged in turn: it is named, and never half loaded."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath

import pytest

from retain.runs.results import open_run
from retain.testing.runs import FIRST, KIND, SECOND, KilledError, Record, carry_on, content
from retain.testing.tiny import OPTIONS, make_backbone, make_learner, read_files
from tests.command import call, settings, write_settings, write_tasks

METHODS = ("sapt", "seekr", "amlora")
COMMANDS = {
    "eval": (),
    "generate": ("a prompt",),
    "learn": ("constant.jsonl",),
    "report": (),
    "verify": (),
}
"""Each with what follows the run's folder."""
NEEDED_BY_REPORT = (
    "scores.json",
    "task.json",
    "evaluation.json",
    "cost.json",
    "training.jsonl",
    "quality.json",
    "pseudo.jsonl",
    "heads.json",
    "memory.jsonl",
    "gates.json",
)
"""Names of files; beside these, all in the folders of predictions and of teacher outputs."""
NEEDED_BY_ALL = ("manifest.json", "config.yaml")


def needs(command: str, name: str) -> bool:
    """Whether a command cannot do without a file of the run."""
    if command == "report":
        path = PurePath(name)
        known = (*NEEDED_BY_REPORT, *NEEDED_BY_ALL)
        return path.name in known or path.parent.name in ("predictions", "teacher")
    return name.startswith((*NEEDED_BY_ALL, "environment.json", "tasks/"))


def cut(content: bytes, share: float) -> bytes:
    """All before a place in it, at least a byte less."""
    return content[: int(share * len(content))]


def flipped(content: bytes, share: float) -> bytes:
    """With one bit changed at a place in it."""
    changed = bytearray(content)
    if content:
        changed[min(int(share * len(content)), len(content) - 1)] ^= 1
    return bytes(changed)


DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "missing": lambda content: None,
    **{f"cut at {share}": (lambda c, s=share: cut(c, s)) for share in (0.0, 0.3, 0.99)},
    **{f"bit at {share}": (lambda c, s=share: flipped(c, s)) for share in (0.0, 0.4, 0.7, 1.0)},
}
FAST = ("missing", "cut at 0.3", "bit at 0.4")


@pytest.fixture(scope="module", params=METHODS)
def run(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    backbone_folder: Callable[[str], Path],
) -> Iterator[Path]:
    """A finished run of two tasks."""
    folder = tmp_path_factory.mktemp(request.param)
    write_tasks(folder)
    values = settings(backbone_folder(KIND), "copy", "letter")
    values["method"] = {"name": request.param, **OPTIONS.get(request.param, {})}
    write_settings(folder / "exp.yaml", values)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done = call("run", "exp.yaml")
        assert done.status == 0, done.err
        yield folder / "out"


@contextmanager
def damaged(path: Path, how: str) -> Iterator[bool]:
    """Damages a file for a while; yields whether that changes it."""
    before = path.read_bytes()
    after = DAMAGES[how](before)
    path.unlink()
    if after is not None:
        path.write_bytes(after)
    try:
        yield after != before
    finally:
        if path.parent.exists():  # unfinished work goes
            path.write_bytes(before)


def refused(run: Path, name: str, command: str) -> None:
    """Asserts that the command ends with one line on that file."""
    done = call(command, run, *COMMANDS[command])
    (line,) = done.err.splitlines()
    assert done.status == 2, done
    if command == "verify" and name != "manifest.json":
        assert re.match(rf"error: {re.escape(str(run))}: \d+ files? failed verification", line), (
            line
        )
        (named,) = done.out.splitlines()
        assert named.startswith(f"{run / name}: "), named
        return
    assert done.out == ""
    gone = name == "manifest.json" and not (run / name).exists()
    assert line.startswith(f"error: {run}: not a run" if gone else f"error: {run / name}: "), line


@pytest.mark.parametrize(
    "how", [pytest.param(h, marks=() if h in FAST else pytest.mark.slow) for h in DAMAGES]
)
def test_every_damage_to_every_file_is_named(run: Path, how: str) -> None:
    names = [name for name in read_files(run) if name != ".lock"]
    assert len(names) > 15
    for name in names:
        with damaged(run / name, how) as differs:
            if differs:
                refused(run, name, "verify")
    assert call("verify", run).status == 0


@pytest.mark.parametrize("command", ["eval", "generate", "learn", "report"])
def test_a_command_refuses_what_it_needs(run: Path, command: str) -> None:
    names = [name for name in read_files(run) if needs(command, name)]
    assert len(names) > 5
    for name in names:
        with damaged(run / name, "bit at 0.4"):
            before = read_files(run)
            refused(run, name, command)
            assert read_files(run) == before


def test_a_run_without_its_manifest_is_not_begun_anew(run: Path) -> None:
    with damaged(run / "manifest.json", "missing"):
        before = read_files(run)
        for more in ((), ("--resume",)):
            done = call("run", "exp.yaml", *more)
            assert (done.status, done.out) == (2, "")
            assert done.err.startswith("error: out: has files but no manifest.json; ")
        assert read_files(run) == before


LISTED = ("evaluation.json", "predictions")
"""What is not read where it is not listed: a kill may have come before."""


def test_what_the_manifest_does_not_list_is_not_read(run: Path) -> None:
    """Each file of a task in turn, and what the run was made with."""
    opened = open_run(run)
    names = [
        name
        for name in opened.files
        if name == "environment.json"
        or (name.startswith("tasks/") and PurePath(name).parts[2] not in ("task.json", *LISTED))
    ]
    assert len(names) > 8
    for name in names:
        sum_ = opened.files.pop(name)
        opened.commit(())
        for command in ("eval", "verify"):
            if command == "eval" or name != "environment.json":
                refused(run, name, command)
        opened.files[name] = sum_
        opened.commit(())
    assert call("verify", run).status == 0


def test_damaged_scores_are_made_again(run: Path) -> None:
    before = (run / "scores.json").read_bytes()
    with damaged(run / "scores.json", "bit at 0.4"):
        assert "retain run CONFIG --resume writes it again" in call("report", run).err
        assert call("run", "exp.yaml", "--resume").status == 0
        assert (run / "scores.json").read_bytes() == before


def test_a_damaged_task_says_what_can_be_gone_back_to(run: Path, tmp_path: Path) -> None:
    """And going back there, and on, leads to the same run."""
    whole = content(run)
    for name in sorted(n for n in whole if n.startswith("tasks/02-letter/")):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(run, tmp_path / "run")
        with damaged(tmp_path / "run" / name, "bit at 0.4"):
            done = call("run", "exp.yaml", "--output", tmp_path / "run", "--resume")
            back = done.err.partition("or learn on from an earlier task: retain ")[2].split()
            if "model.safetensors" in {Path(n).name for n in whole}:
                assert done.err.endswith("from a copy of the run; no earlier state is kept\n")
                return
            assert back == ["rollback", str(tmp_path / "run"), "--to", "copy"], done
            assert call(*back).status == 0
    resumed = call("run", "exp.yaml", "--output", tmp_path / "run", "--resume")
    assert resumed.status == 0, resumed.err
    assert content(tmp_path / "run") == whole


# -- unfinished work: made again where it is damaged, to the same numbers


@dataclass(frozen=True)
class Unfinished:
    """A run killed while it learned its second task, and what comes of one that was not."""

    folder: Path
    whole: dict[str, bytes]


def interrupted(method: str, folder: Path, event: Callable[[str], bool]) -> Unfinished:
    learner = make_learner(method, make_backbone(KIND), folder / "whole")
    for task in (FIRST, SECOND):
        learner.learn(task)
    record = Record()
    learner = make_learner(method, make_backbone(KIND), folder / "killed", record)
    learner.learn(FIRST)
    record.when = event
    with pytest.raises(KilledError):
        learner.learn(SECOND)
    return Unfinished(folder / "killed", content(folder / "whole"))


@pytest.fixture(scope="module")
def in_a_phase(tmp_path_factory: pytest.TempPathFactory) -> Unfinished:
    return interrupted("seqlora", tmp_path_factory.mktemp("phase"), lambda e: e.startswith("3 "))


@pytest.fixture(scope="module")
def between_phases(tmp_path_factory: pytest.TempPathFactory) -> Unfinished:
    return interrupted("sapt", tmp_path_factory.mktemp("phases"), lambda e: e.endswith(" · learn"))


def goes_on(unfinished: Unfinished, folder: Path, name: str, how: str) -> None:
    """Damages a file, resumes, and compares."""
    shutil.copytree(unfinished.folder, folder)
    (path,) = folder.rglob(name)
    with damaged(path, how):
        carry_on(folder)
        assert content(folder) == unfinished.whole


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("model.safetensors", "bit at 0.7"),
        ("optimizer.pt", "bit at 0.7"),
        ("optimizer.pt", "cut at 0.3"),
        ("scheduler.pt", "missing"),
        ("rng_state.pth", "cut at 0.0"),
        ("trainer_state.json", "cut at 0.99"),
        ("sealed.json", "bit at 0.4"),
        ("sealed.json", "missing"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over(
    in_a_phase: Unfinished, tmp_path: Path, name: str, how: str
) -> None:
    goes_on(in_a_phase, tmp_path / "run", f"checkpoint-*/{name}", how)


@pytest.mark.parametrize(
    ("name", "how"),
    [("trained.safetensors", "bit at 0.7"), ("log.json", "cut at 0.3"), ("sealed.json", "missing")],
)
def test_a_damaged_phase_is_learned_again(
    between_phases: Unfinished, tmp_path: Path, name: str, how: str
) -> None:
    goes_on(between_phases, tmp_path / "run", f"*.ended/{name}", how)
