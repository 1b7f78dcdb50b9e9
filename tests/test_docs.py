"""The code in README and docs runs as it stands, on a tiny backbone in place of the named one."""

from __future__ import annotations

import re
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from retain.config import check_method, read_experiment
from retain.files import write_jsonl
from retain.methods import METHODS
from tests.tiny import make_task

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BACKBONE = "HuggingFaceTB/SmolLM2-135M-Instruct"


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


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
    names: dict[str, object] = {}
    known = set(METHODS)
    try:
        for code in blocks(page, "python"):
            local = code.replace(BACKBONE, str(backbone_folder("llama")))
            exec(compile(local, page.name, "exec"), names)
    finally:
        for name in METHODS.keys() - known:  # a page may add one
            del METHODS[name]


@pytest.mark.parametrize(
    "page", [p for p in PAGES if blocks(p, "yaml")], ids=lambda page: page.stem
)
def test_experiments_are_valid(page: Path, tmp_path: Path) -> None:
    for text in blocks(page, "yaml"):
        (tmp_path / "experiment.yaml").write_text(text, encoding="utf-8")
        experiment = read_experiment(tmp_path / "experiment.yaml")
        check_method(experiment.method, page.name)
        assert yaml.safe_load(text)["tasks"]


def test_reference_is_that_of_the_code() -> None:
    """If not: python docs/make_reference.py."""
    page = runpy.run_path(str(ROOT / "docs" / "make_reference.py"))["page"]()
    assert (ROOT / "docs" / "reference.md").read_text(encoding="utf-8") == page
