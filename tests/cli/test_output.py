"""What the system refuses a command: one line and status 2, as for a mistake."""

from __future__ import annotations

import ast
import io
import os
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from retain.cli import shared
from retain.report.layout import new_table
from retain.runs.directory import RunDirectory
from retain.system import files
from tests.command import call, check, refused

METHODS = "import sys; sys.argv = ['retain', 'methods']"
PRINTS = "cli.app = lambda **_: print('an answer')"
"""What a process does before `main`: `retain methods`, or a command that leaves text unflushed."""


def retain(before: str, stdout: str | int, **more: str) -> tuple[int, str, str]:
    """The command line in a process of its own; its status, output and errors."""
    command = [sys.executable, "-c", f"from retain.cli import entry as cli; {before}; cli.main()"]
    out = os.open(stdout, os.O_WRONLY) if isinstance(stdout, str) else stdout
    env = {**os.environ, "PYTHONUNBUFFERED": "", **more}
    done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, env=env)
    return done.returncode, (done.stdout or b"").decode(), done.stderr.decode()


def test_a_path_that_the_system_refuses() -> None:
    check(call("verify", "x" * 300), [f"{'x' * 300}: File name too long; check the path"])


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError(), "not enough memory; lower the batch sizes"),
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "no"), "not UTF-8 text ("),
        (OSError(5, "Input/output error"), "reading or writing failed: Input/output error; "),
        (PermissionError(13, "Permission denied", "a/b"), "a/b: Permission denied; check the path"),
    ],
)
def test_what_nobody_foresaw(
    error: Exception, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(run: RunDirectory) -> None:
        raise error

    monkeypatch.setattr(RunDirectory, "load_manifest", fail)
    check(call("verify", tmp_path), [says])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which only Linux has")
@pytest.mark.parametrize("before", [METHODS, PRINTS])
def test_a_full_disk_behind_standard_output(before: str) -> None:
    says = "error: standard output: No space left on device; files that the command wrote before"
    status, _, err = retain(before, "/dev/full")
    assert (status, err) == (2, f"{says} are complete\n")


@pytest.mark.parametrize("before", [METHODS, PRINTS])
def test_a_reader_that_has_seen_enough(before: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    assert retain(before, writer) == (1, "", "")
    os.close(writer)


def test_a_terminal_that_does_not_know_every_letter(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    files.write_text(place := run.task_folder(0, "任务") / "a", "x")
    run.commit([place])
    place.unlink()
    verify = f"import sys; sys.argv = ['retain', 'verify', {str(run.path)!r}]"
    status, out, err = retain(verify, subprocess.PIPE, PYTHONIOENCODING="ascii:strict")
    assert out == f"{run.path}/tasks/01-??/a: missing; restore it from a copy of the run\n"
    assert status == 2
    assert err.startswith(f"error: {run.path}: 1 file failed verification")


@pytest.mark.parametrize("terminal", [True, False])
def test_a_name_is_printed_as_it_is(
    terminal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rich would put a picture in the place of `:smile:`, even in text without markup."""
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TTY_COMPATIBLE", "1")
    name = "a:100:b:smile:"
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        table = new_table(name, [name])
        table.add_row(name)
        shared.widened(shared.console).print(table)
        shared.console.print(table)
        shared.say(name)
        shared.warn(name)
        progress = shared.progress_for(name)
        progress.start(name, 1, name)
        progress.update(1, {name: 1.0})
        progress.finish()
        progress.message(name)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    assert out.getvalue().count(name) == 7
    assert err.getvalue().count(name) >= 6
    assert "😄" not in out.getvalue() + err.getvalue()


def test_every_console_prints_names_as_they_are() -> None:
    consoles = [
        (node.func.id, path.name)
        for path in (Path(__file__).parents[2] / "src").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id.endswith("Console")
    ]
    assert {name for name, _ in consoles} == {"PlainConsole", "ErrorConsole"}, consoles


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_standard_streams_that_are_closed_or_full(closed: str, tmp_path: Path) -> None:
    """No traceback; and no file gets the number of a closed stream, nor what is printed there."""
    code = (
        "import os, sys; from retain.cli import entry, shared; sys.argv = ['retain']\n"
        "def command(**_):\n"
        f"    file = open({str(tmp_path / 'file')!r}, 'w')\n"
        "    shared.say('an answer'); shared.warn('a warning'); os.write(1, b'of a library')\n"
        "    file.close()\n"
        "entry.app = command; entry.main()"
    )
    done = subprocess.run(
        ["bash", "-c", f'"$0" -c "$1" {closed}', sys.executable, code], capture_output=True
    )
    assert done.returncode == 0, done
    assert b"Traceback" not in done.stdout + done.stderr
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.parametrize(
    ("option", "before"),
    [
        ("--output", ["report", "run"]),
        ("--picture", ["report", "run"]),
        ("--single", ["report", "run"]),
        ("--csv", ["compare", "run"]),
        ("--html", ["compare", "run"]),
        ("--picture", ["inspect", "run"]),
        ("--output", ["run", "exp.yaml"]),
        ("--test", ["learn", "run", "letter.jsonl"]),
        ("--output", ["sweep", "exp.yaml", "--variants", "seqlora"]),
        ("--json", ["sweep", "exp.yaml", "--variants", "seqlora"]),
        ("", ["report"]),
        ("", ["export", "run"]),
        ("", ["verify"]),
        ("", ["run"]),
    ],
)
@pytest.mark.parametrize("value", ["", "~nosuchuser/x"])
@pytest.mark.usefixtures("place")
def test_every_path_that_leads_nowhere(option: str, before: list[str], value: str) -> None:
    given = [*before, f"{option}={value}" if option else value]
    refused(*given, says=["nobody's home" if value else "the path is empty"])
