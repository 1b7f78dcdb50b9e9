"""Methods outside of the package, by the command line alone: named, installed, missing, broken."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.testclient import TestClient

from retain import Learner
from retain import serve as retain_serve
from retain.errors import RetainError
from retain.methods import METHODS, find, list_methods, load_plugins, registry
from retain.runs.environment import PLUGINS
from retain.serve.app import create_app
from retain.testing.runs import KilledError, Record, content
from tests.command import (
    Called,
    call,
    check,
    forget_plugins,
    refused,
    settings,
    write_settings,
    write_tasks,
)

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
PULLED = re.search(r"```python\n((?:(?!```).)*@register\(\"pulled\"\).*?)```", GUIDE, re.DOTALL)
PROJECTED = (ROOT / "tests" / "plugins" / "projected.py").read_text(encoding="utf-8")
REGISTER = "from retain.methods import register\nfrom retain.methods.seqlora import SeqLora\n"
METHOD = {"pulled": {"name": "pulled", "rank": 2, "pull": 0.5}, "projected": {"name": "projected"}}


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    forget_plugins()


def retain(*arguments: str | Path) -> Called:
    """`retain ARGUMENTS…`, as a new process would run it."""
    forget_plugins()
    return call(*arguments)


def succeed(*arguments: str | Path) -> str:
    done = retain(*arguments)
    assert done.status == 0, done.err
    return done.out


@pytest.fixture
def folder(
    backbone_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The working directory: tasks, both plugins, and an experiment for each."""
    monkeypatch.chdir(tmp_path)
    assert PULLED is not None
    (tmp_path / "pulled.py").write_text(PULLED[1], encoding="utf-8")
    (tmp_path / "projected.py").write_text(PROJECTED, encoding="utf-8")
    write_tasks(tmp_path)
    for name, method in METHOD.items():
        values = settings(backbone_folder("llama"), "copy", "constant")
        values |= {"method": method, "plugins": [name], "output": name}
        values["training"]["save_steps"] = 1
        write_settings(tmp_path / f"{name}.yaml", values)
    return tmp_path


@pytest.mark.parametrize("name", METHOD)
def test_every_command_opens_a_run_again(name: str, folder: Path) -> None:
    succeed("run", f"{name}.yaml")
    assert yaml.safe_load((folder / name / "config.yaml").read_text())["plugins"] == [name]
    plugin = ("--plugin", name)
    assert succeed("verify", name, *plugin).count("files")
    answer = succeed("generate", name, "copy this word: ant", *plugin)
    assert succeed("generate", name, "copy this word: ant", "--plugin", f"{name}.py") == answer
    assert "constant" in succeed("eval", name, *plugin)
    before = content(folder / name)
    succeed("learn", name, "letter.jsonl", *plugin)
    assert "letter" in succeed("rollback", name, "--to", "constant", *plugin)
    assert {**content(folder / name), "scores.json": b""} == {**before, "scores.json": b""}
    succeed("export", name, "exported", *plugin)
    assert (folder / "exported" / "README.md").is_file()
    succeed("report", name, *plugin)
    if name == "pulled":
        assert "Norm after each task" in succeed("inspect", name, *plugin)
        assert "Size of the LoRA" in (folder / name / "report.html").read_text()
    else:
        check(retain("inspect", name, *plugin), ["method 'projected' has nothing to inspect"])
    assert name in succeed("methods", *plugin)


def test_serve_opens_a_run_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    succeed("run", "pulled.yaml")
    prompt, answers = "copy this word: ant", []

    def answered(run: Path, *_: object, **__: object) -> None:
        body = {"messages": [{"role": "user", "content": prompt}]}
        with TestClient(create_app(Learner.load(run))) as client:
            reply = client.post("/v1/chat/completions", json=body).json()
        answers.append(reply["choices"][0]["message"]["content"])

    monkeypatch.setattr(retain_serve, "serve", answered)
    succeed("serve", "pulled", "--plugin", "pulled")
    assert answers == [succeed("generate", "pulled", prompt, "--plugin", "pulled").strip()]
    check(retain("serve", "pulled"), ["--plugin pulled"])


@pytest.mark.parametrize("name", METHOD)
@pytest.mark.parametrize("event", ["start constant · learn", "2 constant · learn"])
def test_a_killed_run_resumes_to_the_same_bytes(
    name: str, event: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second event is after a checkpoint, with a state of the hooks in it."""
    succeed("run", f"{name}.yaml", "--output", "whole")
    record = Record(event.__eq__)
    with monkeypatch.context() as patch:
        patch.setattr("retain.cli.learning.progress_for", lambda prefix: record)
        with pytest.raises(KilledError):
            retain("run", f"{name}.yaml")
    succeed("run", f"{name}.yaml", "--resume")
    assert content(folder / name) == content(folder / "whole")


def test_hooks_act_around_the_step(folder: Path) -> None:
    """Without them the second task's adapter is another one."""
    succeed("run", "projected.yaml")
    idle = PROJECTED.replace("yield replace(phase, **hooks, state=self.state)", "yield phase")
    idle = idle.replace("def save(self, context: TaskContext)", "def _save(self, context)")
    idle = idle.replace("self._add_direction(context.folder)\n\n", "pass\n\n")
    (folder / "projected.py").write_text(idle, encoding="utf-8")
    succeed("run", "projected.yaml", "--output", "idle")
    second = "tasks/02-constant/adapter_model.safetensors"
    assert content(folder / "projected")[second] != content(folder / "idle")[second]


def test_a_plugin_that_nobody_named_is_not_imported(folder: Path) -> None:
    """A run folder from elsewhere must not run code, whatever lies beside it."""
    succeed("run", "pulled.yaml")
    (folder / "pulled.py").write_text("open('ran', 'w').close()\n", encoding="utf-8")
    for command in (
        ["verify", "pulled"],
        ["generate", "pulled", "copy"],
        ["eval", "pulled"],
        ["learn", "pulled", "letter.jsonl"],
        ["rollback", "pulled", "--to", "copy"],
        ["export", "pulled", "exported"],
        ["serve", "pulled", "--port", "0"],
    ):
        forget_plugins()
        refused(*command, says=["method 'pulled' comes with a plugin", "add --plugin pulled"])
    done = subprocess.run(
        [sys.executable, "-m", "retain", "verify", "pulled"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert not (folder / "ran").exists()


def test_reports_work_without_the_plugin(folder: Path) -> None:
    succeed("run", "pulled.yaml")
    assert "AP" in succeed("report", "pulled")
    assert "AP" in succeed("compare", "pulled", "pulled")
    succeed("check", "pulled", "--max-forgetting", "100")


def test_a_changed_plugin_is_reported(folder: Path) -> None:
    succeed("run", "pulled.yaml")
    with (folder / "pulled.py").open("a", encoding="utf-8") as file:
        file.write("# another version\n")
    done = retain("learn", "pulled", "letter.jsonl", "--plugin", "pulled")
    assert done.status == 0
    assert re.search(r"begun with other versions: plugin pulled \w+ is now \w+", done.err)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("import nowhere_to_be_found", ["plugin 'mine': cannot be imported", "line 1"]),
        ("x = 1\nx.y", ["plugin 'mine'", "AttributeError", "mine.py, line 2"]),
        ("x = 1", ["plugin 'mine': registers no method", "@register"]),
        ("x = 1\ndef (", ["plugin 'mine': cannot be imported (SyntaxError", "mine.py, line 2"]),
        ("import sys\nsys.exit(0)", ["plugin 'mine': cannot be imported (SystemExit", "line 2"]),
        (f"{REGISTER}register('mine')(lambda: 3)", ["the method 'mine' is not a subclass of"]),
        (f"{REGISTER}register(5)(SeqLora)", ["the method 5 needs a text as its name"]),
        (
            f"{REGISTER}class Mine(SeqLora): Config = dict\nregister('mine')(Mine)",
            ["the method 'mine' (Mine) has no Config that is a subclass of MethodConfig"],
        ),
        (
            f"{REGISTER}class Mine(SeqLora): traits = None\nregister('mine')(Mine)",
            ["the method 'mine' (Mine) has no traits"],
        ),
        (
            "from retain.methods import register\nfrom retain.methods.seqlora import SeqLora\n"
            "class Mine(SeqLora): pass\nregister('sapt')(Mine)",
            ["mine: registers the method 'sapt', which retain has registered already"],
        ),
        (None, ["plugin 'mine': no such module", "name a module or a .py file"]),
    ],
)
def test_a_broken_plugin_is_one_line(source: str | None, says: list[str], folder: Path) -> None:
    if source is not None:
        (folder / "mine.py").write_text(source, encoding="utf-8")
    values = yaml.safe_load((folder / "pulled.yaml").read_text())
    write_settings(folder / "mine.yaml", {**values, "plugins": ["mine"], "output": "out"})
    before = {path.name for path in folder.iterdir()}
    known = dict(METHODS)
    for arguments in (["run", "mine.yaml"], ["methods", "--plugin", "mine"]):
        check(retain(*arguments), says)
    assert known == METHODS
    assert PLUGINS == {}
    assert {path.name for path in folder.iterdir()} - {"__pycache__"} == before
    check(retain("methods", "--plugin", "gone/mine.py"), ["gone/mine.py: no such file"])


def test_a_plugin_beside_a_run_s_settings_is_not_imported(folder: Path) -> None:
    """Not even when the user runs the settings that a run from elsewhere has in its folder."""
    succeed("run", "pulled.yaml")
    (folder / "pulled" / "pulled.py").write_text("open('ran', 'w').close()\n", encoding="utf-8")
    forget_plugins()
    refused("run", "pulled/config.yaml", "--dry-run", says=["is in a run's folder", "--plugin"])
    again = ("run", "pulled/config.yaml", "--resume", "--plugin", "pulled.py")
    succeed(*again)
    assert not (folder / "ran").exists()


def test_two_files_of_one_module_name(folder: Path) -> None:
    """The second one would silently be the first."""
    other = folder / "other"
    other.mkdir()
    shutil.copy(folder / "pulled.py", other)
    done = retain("methods", "--plugin", "pulled.py", "--plugin", "other/pulled.py")
    check(done, ["other/pulled.py: a module 'pulled' is imported already, from"])
    (folder / "peft.py").write_text("x = 1", encoding="utf-8")
    check(retain("methods", "--plugin", "peft.py"), ["a module 'peft' is imported already"])


def test_what_a_run_says_to_name_can_be_named(folder: Path) -> None:
    nested = folder / "nested"
    nested.mkdir()
    (folder / "pulled.py").rename(nested / "mine.py")
    values = yaml.safe_load((folder / "pulled.yaml").read_text())
    write_settings(folder / "nested.yaml", {**values, "plugins": ["nested/mine.py"]})
    succeed("run", "nested.yaml")
    check(retain("verify", "pulled"), ["add --plugin mine (the module, or the path of its file"])
    succeed("verify", "pulled", "--plugin", "nested/mine.py")
    check(
        retain("methods", "--plugin", "~no-such-user/mine.py"), ["plugin ~no-such-user/mine.py: "]
    )


def test_two_plugins_of_one_name(folder: Path) -> None:
    shutil.copy(folder / "pulled.py", folder / "other.py")
    done = retain("methods", "--plugin", "pulled", "--plugin", "other")
    check(done, ["other: registers the method 'pulled', which pulled has registered already"])


class Distribution:
    name, version = "retain-pulled", "1.2"


@pytest.fixture
def installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Plays an installed package whose entry point is the given one."""

    def install(value: str, name: str = "pulled") -> None:
        point = EntryPoint(name, value, registry.GROUP)
        vars(point)["dist"] = Distribution()
        monkeypatch.setattr(registry, "_entry_points", lambda: [point])

    monkeypatch.syspath_prepend(folder)
    source = (folder / "pulled.py").read_text(encoding="utf-8")
    (folder / "packaged.py").write_text(source.replace('@register("pulled")\n', ""), "utf-8")
    yield install
    sys.modules.pop("packaged", None)


def test_an_installed_package_needs_no_flag(
    folder: Path, installed: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed("packaged:Pulled")
    values = yaml.safe_load((folder / "pulled.yaml").read_text())
    write_settings(folder / "installed.yaml", {**values, "plugins": []})
    assert "pulled" in list_methods()
    succeed("run", "installed.yaml")
    assert "pulled" in succeed("methods")
    succeed("generate", "pulled", "copy this word: ant")
    monkeypatch.setattr(registry, "_entry_points", lambda: [])
    check(retain("verify", "pulled"), ["comes with a package; install retain-pulled 1.2"])


@pytest.mark.parametrize(
    ("value", "name", "says"),
    [
        ("packaged:Nothing", "pulled", "package retain-pulled: its method 'pulled' cannot be"),
        ("packaged:PulledConfig", "pulled", "is not a subclass of retain.Method but <class"),
        ("packaged:Pulled", "sapt", "registers the method 'sapt', which retain has"),
    ],
)
def test_a_broken_package_is_one_line(
    value: str, name: str, says: str, installed: Callable[..., Any]
) -> None:
    installed(value, name)
    with pytest.raises(RetainError, match=says):
        find(name)
    done = retain("methods")  # the others are listed
    assert done.status == 0
    assert re.search("error: (package )?retain-pulled", done.out)
    assert "seqlora" in done.out


def contract_tests(plugin: str, chosen: str) -> subprocess.CompletedProcess[str]:
    """Runs the contract tests over a plugin as its author does, without retain's own settings."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--strict-markers"]
    return subprocess.run(
        [*command, "--pyargs", "retain.testing", "-k", chosen],
        env={**os.environ, "RETAIN_PLUGINS": plugin},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_contract_tests_run_over_a_plugin(folder: Path) -> None:
    """One architecture and one kill are enough to see that they do."""
    chosen = "pulled-llama or (whole and killed_between and pulled) or (backbone_from and llama)"
    done = contract_tests("pulled", chosen)
    assert done.returncode == 0, done.stdout
    assert re.search(r"1\d passed", done.stdout), done.stdout
    assert "warning" not in done.stdout
    assert "sapt" not in done.stdout


BREAKING = """
from pathlib import Path

from pulled import Pulled
from retain.errors import RetainError
from retain.methods import register


@register("raising")
class Raising(Pulled):
    @classmethod
    def diagnostics(cls, run, task):
        raise RetainError("nothing here")


@register("writing")
class Writing(Pulled):
    @classmethod
    def diagnostics(cls, run, task):
        (run.path / "tasks" / "cache.json").write_text("{}")
        return []


@register("littering")
class Littering(Pulled):
    def finish(self, task, context):
        Path(f"{context.name}.txt").write_text("x")


@register("mixing")
class Mixing(Pulled):
    def route(self, batch, task=None):
        super().route(batch, task)
        if len(batch["input_ids"]) > 1 and "labels" not in batch:
            batch["input_ids"][:, -1] = 5
"""


def test_the_contract_tests_see_what_a_method_breaks(folder: Path) -> None:
    (folder / "breaking.py").write_text(BREAKING, encoding="utf-8")
    chosen = "llama and (folders_of_tasks or shows_is_read or routing_and_answers)"
    done = contract_tests("breaking", chosen)
    failed = set(re.findall(r"^FAILED .*::(\w+)\[(\w+)-llama\]", done.stdout, re.MULTILINE))
    assert failed == {
        ("test_what_a_run_shows_is_read", "raising"),
        ("test_what_a_run_shows_is_read", "writing"),
        ("test_only_the_folders_of_tasks_are_written", "littering"),
        ("test_routing_and_answers_do_not_depend_on_the_batch", "mixing"),
    }, done.stdout


def test_loading_twice_is_loading_once(folder: Path) -> None:
    load_plugins(["pulled"], folder)
    load_plugins(["pulled", "pulled.py"], folder)
    assert find("pulled") is METHODS["pulled"]
