"""The code in README and docs runs as it stands, on a tiny backbone in place of the named one."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel
from typer.main import get_command

from retain.cli import app
from retain.cli.known_methods import INDEX
from retain.experiment.compose import read_experiment
from retain.experiment.config import check_method
from retain.experiment.files import Case, ExperimentFile, When
from retain.system.files import write_jsonl
from retain.testing.tiny import make_task
from tests.command import forget_plugins

ROOT = Path(__file__).parents[2]
LOG = ROOT / "docs" / "experiments"  # commands as they were run on their day
ALL_PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in ALL_PAGES if page.parent != LOG]
COMMANDS = get_command(app).commands
OWN_METHOD = ("plugins: [pulled]\nmethod: {name: pulled, pull: 0.5}", "method: seqlora")
"""The guide's plugin is not beside the experiment here; tests/cli/test_plugins.py runs it."""
BACKBONE = "HuggingFaceTB/SmolLM2-135M-Instruct"


def blocks(page: Path, *languages: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [block for language, block in found if language in languages]


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [p for p in PAGES if blocks(p, "python")], ids=lambda page: page.stem
)
def test_python_runs(
    page: Path,
    backbone_folder: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, task in (("tickets", "copy"), ("reviews", "constant")):
        example = make_task(task)
        rows = [row.as_row() for row in (*example.train, *example.dev, *example.test)]
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    names: dict[str, object] = {"__name__": "page"}  # the module of its classes
    try:
        for code in blocks(page, "python"):
            local = code.replace(BACKBONE, str(backbone_folder("llama")))
            exec(compile(local, page.name, "exec"), names)
    finally:
        forget_plugins()  # a page may add a method


@pytest.mark.parametrize(
    "page", [p for p in PAGES if blocks(p, "yaml")], ids=lambda page: page.stem
)
def test_experiments_are_valid(page: Path, tmp_path: Path) -> None:
    for text in blocks(page, "yaml"):
        text = text.replace(
            "plugins: [pulled]\nmethod: {name: pulled, pull: 0.5}", "method: seqlora"
        )
        (tmp_path / "experiment.yaml").write_text(text, encoding="utf-8")
        files = [tmp_path / "experiment.yaml"]
        more = {}
        if "recipe" in yaml.safe_load(text):  # for a stream, a backbone and a method
            files.insert(0, ROOT / "configs/streams/superni.yaml")
            more = {"backbone": "tiny", "method": "sapt"}
        experiment = read_experiment(files, **more)
        check_method(experiment.method, page.name)
        assert experiment.tasks


COMMAND = re.compile(r"(?:[A-Z_]+=\S+ |torchrun .* -m )?retain (.*)")


def commands(text: str) -> list[list[str]]:
    """What follows `retain` in the lines of a shell block, word by word."""
    lines = text.replace("\\\n", " ").splitlines()
    starts = [(i, match[1]) for i, line in enumerate(lines) if (match := COMMAND.match(line))]
    return [words([start, *lines[i + 1 :]]) for i, start in starts]


def words(lines: list[str]) -> list[str]:
    """Those of the first line, and of the next ones while a quote is open."""
    for end in range(1, len(lines) + 1):
        with suppress(ValueError):
            return shlex.split("\n".join(lines[:end]), comments=True)
    raise AssertionError(f"a quote stays open: {lines[0]}")


def parse(given: list[str]) -> None:
    """As the command line does, without running the command; raises UsageError."""
    command = COMMANDS.get(given[0])
    assert command is not None, f"no command {given[0]}"
    command.make_context(given[0], given[1:])


@pytest.mark.parametrize(
    "page", [p for p in PAGES if blocks(p, "bash", "")], ids=lambda page: page.stem
)
def test_commands_are_those_of_the_command_line(
    page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retain.methods.load_plugins", lambda names, beside: None)
    for block in blocks(page, "bash", ""):
        for given in commands(block):
            try:
                parse(given)
            except Exception as error:
                pytest.fail(f"{page.name}: retain {shlex.join(given)}: {error}")


def test_wrong_commands_are_noticed() -> None:
    block = (
        "retain serve run --port 1  # OpenAI's\n"
        "KEY=a retain generate run 'two\nlines' \\\n    --json\n"
        "not retain serve\n"
        "retain serve run --speed 1\nretain serve\nretain serve run other\nretain sing run\n"
    )
    right, split, *wrong = commands(block)
    assert (right, split[2:]) == (["serve", "run", "--port", "1"], ["two\nlines", "--json"])
    parse(right)
    parse(split)
    assert len(wrong) == 4
    for given in wrong:
        with pytest.raises(Exception, match=r"No such option|Missing|extra argument|no command"):
            parse(given)


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub names them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(page: Path) -> list[str]:
    """Relative links of a page whose file or heading does not exist."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        exists = target.exists() and not name.startswith("/")
        if not exists or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_broken_links_are_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    (tmp_path / "other.md").write_text("# One (2026, *two*)\n", encoding="utf-8")
    page.write_text(
        "# Here\n[a](other.md#one-2026-two) [b](#here) [c](https://example.org) [d](other.md)\n"
        "[e](none.md) [f](other.md#two) [g](#there) ![h](/absolute.png)\n",
        encoding="utf-8",
    )
    assert broken_links(page) == ["none.md", "other.md#two", "#there", "/absolute.png"]


FILE = re.compile(r"`((?:src|tests|benchmarks|demo|docs)/[\w./-]+\.py)`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_named_files_exist(page: Path) -> None:
    names = set(FILE.findall(page.read_text(encoding="utf-8")))
    assert [name for name in sorted(names) if not (ROOT / name).is_file()] == []


def test_log_lists_every_experiment() -> None:
    """docs/experiments/index.md links each page once, newest first."""
    index = (LOG / "index.md").read_text(encoding="utf-8")
    names = re.findall(r"\]\((\d{4}-\d\d-\d\d-[\w-]+\.md)\)", index)
    assert sorted(names) == sorted(page.name for page in LOG.glob("2*.md"))
    dates = [name[:10] for name in names]
    assert dates == sorted(dates, reverse=True)


def test_reference_is_that_of_the_code() -> None:
    """If not: python docs/make_reference.py."""
    made = runpy.run_path(str(ROOT / "docs" / "make_reference.py"))
    assert (ROOT / "docs" / "reference.md").read_text(encoding="utf-8") == made["page"]()
    assert INDEX.read_text(encoding="utf-8") == made["index"]()


def test_reference_has_what_the_pages_use_of_a_learner() -> None:
    """Inherited members too."""
    reference = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^#### `Learner\.(\w+)", reference, re.MULTILINE))
    code = "\n".join(block for page in PAGES for block in blocks(page, "python"))
    used = set(re.findall(r"\blearner\.(\w+)", code)) | set(re.findall(r"\bLearner\.(\w+)", code))
    assert {"generate", "load"} <= used
    assert used <= listed


@pytest.mark.parametrize("part", [ExperimentFile, Case, When])
def test_reference_explains_every_field_of_a_file(part: type[BaseModel]) -> None:
    reference = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^(?:\| |### )`(\w+)`", reference, re.MULTILINE))
    assert set(part.model_fields) <= listed


def test_retain_methods_imports_no_model_code() -> None:
    """It lists the same as when the methods are imported, in a fraction of the time."""
    code = "import sys; from retain.cli import app; app(['methods'], standalone_mode=False);"
    checked = f"{code} assert 'torch' not in sys.modules"
    imported = f"import retain.methods; {code}"
    environment = {**os.environ, "COLUMNS": "200"}
    told = [
        subprocess.run(
            [sys.executable, "-c", each], check=True, capture_output=True, env=environment
        ).stdout
        for each in (checked, imported)
    ]
    assert told[0] == told[1]
    assert b"sapt" in told[0]
