"""Every command that writes, killed and out of disk space at each of its changes of the disk.

The command that the guide documents, given again, then leads to the results of an undisturbed one;
and until then `verify` passes.
"""

from __future__ import annotations

import errno
import io
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from retain.learner.upkeep import verify
from retain.runs.directory import LOCK, TEMPORARY
from retain.runs.manifest import MANIFEST
from retain.runs.results import open_run
from retain.testing.tiny import OPTIONS, read_files
from tests.command import Called, call, settings, snapshot, write_settings, write_tasks

State = dict[str, bytes | None]
Files = frozenset[tuple[str, bytes]]
TAKES_ROOM = ("open", "mkdir", "fsync", "replace", "rename")
FREES_ROOM = ("unlink", "remove", "rmdir")


@contextmanager
def changes(before: Callable[[str], None]) -> Iterator[None]:
    """Calls `before`, with the function's name, before every change below the working folder.

    All that Python changes passes through these few functions; what a library writes in another
    language comes before the fsync of its file.
    """
    place = f"{os.getcwd()}{os.sep}"

    def is_below(path: Any) -> bool:
        return not isinstance(path, int) and os.path.abspath(os.fspath(path)).startswith(place)

    def does_nothing(name: str, path: Any) -> bool:
        there = os.path.lexists(path)
        return there if name == "mkdir" else not there and name in FREES_ROOM

    def changing(name: str, change: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(path: Any, *given: Any, **named: Any) -> Any:
            in_folder = named.get("dir_fd") is not None  # a name in a folder that rmtree has open
            if name == "fsync" or in_folder or (is_below(path) and not does_nothing(name, path)):
                before(name)
            return change(path, *given, **named)

        return wrapped

    def opening(path: Any, mode: str = "r", *given: Any, **named: Any) -> Any:
        if set(mode) & set("wax+") and is_below(path):
            before("open")
        return plain_open(path, mode, *given, **named)

    plain_open = io.open
    with pytest.MonkeyPatch.context() as patch:
        for name in (*TAKES_ROOM[1:], *FREES_ROOM):
            patch.setattr(os, name, changing(name, getattr(os, name)))
        patch.setattr(io, "open", opening)
        patch.setattr("builtins.open", opening)
        yield


def refused(done: Called, cause: str) -> None:
    """Asserts that a command ended with one line on the disk, after what it told before."""
    assert (done.status, done.out) == (2, ""), done
    (line,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert done.err.endswith(f"{line}\n"), done.err
    assert cause in line, line


def restore(state: State) -> None:
    """Makes the working folder what it was; what is as it was is left alone."""
    now = snapshot(Path.cwd())
    for name in sorted(now.keys() - state.keys(), reverse=True):
        Path(name).rmdir() if now[name] is None else Path(name).unlink()
    for name in sorted(state.keys()):
        data = state[name]
        if data is None:
            Path(name).mkdir(exist_ok=True)
        elif now.get(name) != data:
            Path(name).write_bytes(data)


def lasting(state: State) -> Files:
    """The files of a state, but for those under the temporary names of a run's files."""
    return frozenset(
        (name, data)
        for name, data in state.items()
        if data is not None and not any(map(TEMPORARY.fullmatch, Path(name).parts))
    )


# -- what each command begins with, and how it is led on


@dataclass(frozen=True)
class Command:
    """A command, how it is led on, and what it makes.

    Attributes:
        argv: its words.
        begins_with: the runs that are there before.
        makes: the folder or file of its result.
        again: the words that lead it on.
    """

    argv: Sequence[str]
    begins_with: Sequence[str]
    makes: str
    again: Sequence[str]


def command(argv: str, begins_with: str = "", makes: str = "lora", again: str = "") -> Command:
    return Command(argv.split(), begins_with.split(), makes, (again or argv).split())


COMMANDS = {
    "run": command("run full.yaml", makes="full", again="run full.yaml --resume"),
    "learn": command("learn full letter.jsonl --test letter.test.jsonl", "full", "full"),
    "learn sapt": command("learn sapt letter.jsonl --test letter.test.jsonl", "sapt", "sapt"),
    "run --resume --set": command("run lora.yaml --resume --set training.save_steps=7", "lora"),
    "rollback": command("rollback lora --to copy", "lora"),
    "compact": command("compact pair --blocks 1 --max-loss 100", "pair", "pair"),
    "report --single": command("report lora --single pertask", "lora pertask"),
    "report": command("report lora", "lora", "lora/report.html"),
    "export": command("export lora adapters", "lora", "adapters"),
    "sweep": command(
        "sweep full.yaml --variants seqft --seeds 0 --output sweeps", "sweeps", "sweeps"
    ),
}
LEAST = {
    "run": 90,
    "learn": 90,
    "learn sapt": 120,
    "run --resume --set": 15,
    "rollback": 30,
    "compact": 5,
    "report --single": 20,
    "report": 4,
    "export": 9,
    "sweep": 4,
}
"""Positions at which each command is killed, at the least."""
SLOW = ("learn", "learn sapt", "report --single")
"""Commands that write in the ways of another one."""


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, backbone_folder: Callable[[str], Path]
) -> Iterator[State]:
    """The working folder: experiments, data, and a finished run of each."""
    folder = tmp_path_factory.mktemp("everywhere")
    write_tasks(folder)
    for name, method, tasks in (
        ("full", {"name": "seqft"}, ["copy"]),
        ("lora", {"name": "seqlora", "rank": 2}, ["copy", "letter"]),
        ("pertask", {"name": "pertask", "rank": 2}, ["copy", "letter"]),
        ("sapt", {"name": "sapt", **OPTIONS["sapt"]}, ["copy"]),
        ("pair", {"name": "sapt", "router": {"kind": "whitened"}}, ["copy", "letter"]),
    ):
        values = settings(backbone_folder("llama"), *tasks)
        values |= {"method": method, "output": name}
        values["training"]["max_steps"] = 1
        values["evaluation"]["limit"] = 2
        write_settings(folder / f"{name}.yaml", values)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("full", "lora", "pertask", "sapt", "pair"):
            assert call("run", f"{name}.yaml").status == 0
        assert call(*COMMANDS["sweep"].argv).status == 0
        (result,) = Path("sweeps").rglob("sweep.json")
        result.unlink()
        yield snapshot(folder)


@dataclass
class Tried:
    """A command that ran to its end, and what it would have left otherwise.

    Attributes:
        command: which.
        states: by its lasting files each state before a change, which is what a kill there leaves,
            and each after the disk was full there.
        kills: the number of changes.
        ends: how the command ended where the disk was full.
        result: what it made.
    """

    command: Command
    states: dict[Files, State]
    kills: int
    ends: list[Called]
    result: dict[str, bytes]


def tried(name: str, place: State) -> Tried:
    """Runs a command; before each change keeps the state, and forks one that has no more room."""
    given = COMMANDS[name]
    folders = {"full", "lora", "pertask", "sapt", "pair", "sweeps"} - {*given.begins_with}
    restore({path: data for path, data in place.items() if path.split("/")[0] not in folders})
    states: dict[Files, State] = {}
    ends: list[Called] = []
    kills, is_full, is_restoring = 0, False, False
    ours, theirs = multiprocessing.Pipe(duplex=False)

    def before(change: str) -> None:
        nonlocal kills, is_full, is_restoring
        if is_restoring:
            return
        if not is_full:
            kills += 1
            state = snapshot(Path.cwd())
            states[lasting(state)] = state
            child = os.fork() if change in TAKES_ROOM else None
            if child:
                ends.append(ours.recv())
                os.waitpid(child, 0)
                left = snapshot(Path.cwd())
                states.setdefault(lasting(left), left)
                is_restoring = True
                restore(state)
                is_restoring = False
            is_full = child == 0
        if is_full and change in TAKES_ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    done = Called(-1, "", "raised an exception")
    try:
        with changes(before):
            done = call(*given.argv)
    finally:
        if is_full:  # all that the child was for
            theirs.send(done)
            os._exit(0)
    assert done.status == 0, done.err
    return Tried(given, states, kills, ends, made(given))


def made(given: Command) -> dict[str, bytes]:
    """What a command made, but for times and the checksums of those."""
    path = Path(given.makes)
    files = {path.name: path.read_bytes()} if path.is_file() else read_files(path)
    return {
        name: data
        for name, data in files.items()
        if Path(name).name not in ("cost.json", MANIFEST, LOCK)
    }


def is_whole() -> None:
    """Asserts that every run that has a manifest passes verification."""
    for manifest in Path.cwd().rglob(MANIFEST):
        assert verify(open_run(manifest.parent)) == []


def leads_on(done: Tried) -> None:
    """Asserts that each state is valid, and that the command again comes to the same end."""
    for state in done.states.values():
        restore(state)
        is_whole()
        if done.command.makes == "adapters" and Path("adapters").exists():
            assert made(done.command) == done.result  # all of it, or nothing
            continue
        again = call(*done.command.again)
        assert again.status == 0, again.err
        is_whole()
        assert made(done.command) == done.result


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in COMMANDS]
)
def test_every_position(name: str, place: State) -> None:
    done = tried(name, place)
    print(
        f"{name}: killed at {done.kills} positions, out of room at {len(done.ends)}; "
        f"{len(done.states)} different states"
    )
    assert done.kills >= LEAST[name]
    assert len(done.ends) >= LEAST[name] / 2
    for end in done.ends:
        refused(end, "No space left on device")
    if name != "learn sapt":  # src/retain/testing/test_resume.py kills and resumes it
        leads_on(done)
