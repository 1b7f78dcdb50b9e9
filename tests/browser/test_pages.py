"""The pages in a real browser: phone and desktop, light and dark. `make test-browser` runs it.

Each test leaves a picture of the page in its temporary folder.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from retain.learner.learner import Learner
from retain.report import render, summarise
from retain.testing.tiny import make_learner, make_task, prompts_of
from tests.browser.driver import Browser, browser

LONG = "task1687_sentiment140_classification"
TASKS = [make_task("copy"), replace(make_task("constant"), name=LONG), make_task("letter")]
PROMPT = prompts_of(TASKS[0])[0]
LOOKS = pytest.mark.parametrize(
    ("width", "dark"), [(360, False), (360, True), (1280, False), (1280, True)]
)

FAINT = """
const channels = (text) => text.match(/[\\d.]+/g).map(Number);
const luminance = (colour) => {
  const [r, g, b] = channels(colour).slice(0, 3).map((value) => {
    const share = value / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (element) => {
  for (; element; element = element.parentElement) {
    const colour = getComputedStyle(element).backgroundColor;
    if ((channels(colour)[3] ?? 1) > 0) return colour;
  }
  return "rgb(255, 255, 255)";
};
const faint = [];
for (const element of document.body.querySelectorAll("*")) {
  const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  if (!own || element.closest("svg, script, style") || !element.checkVisibility()) continue;
  const [low, high] = [getComputedStyle(element).color, behind(element)].map(luminance)
    .sort((a, b) => a - b);
  if ((high + 0.05) / (low + 0.05) < 4.5) faint.push(element.textContent.trim().slice(0, 40));
}
return faint;
"""
"""Texts with less contrast to what is behind them than WCAG's AA asks for."""

CUT = """
const cut = [];
for (const svg of document.querySelectorAll("svg")) {
  const whole = svg.getBoundingClientRect();
  if (!whole.width) continue;
  for (const part of svg.querySelectorAll("text, use, rect, path, circle, line, image")) {
    if (part.closest("defs, clipPath")) continue;
    const box = part.getBoundingClientRect();
    if (box.left < whole.left - 1 || box.right > whole.right + 1 || box.top < whole.top - 1
        || box.bottom > whole.bottom + 1) cut.push(part.outerHTML.slice(0, 120));
  }
}
return cut;
"""
"""Parts of pictures that stand over their picture's edge."""


WIDE = """
const wide = [];
for (const table of document.querySelectorAll("table")) {
  const box = table.getBoundingClientRect();
  if (!box.width || box.right > window.innerWidth) wide.push(table.textContent.slice(0, 80));
}
return wide;
"""
"""Tables that are not shown, or stand over the page's edge."""

NUMBERLESS = """
const without = [];
for (const table of document.querySelectorAll("table:not(.words)")) {
  const first = table.querySelector("td");
  if (first.getBoundingClientRect().right > window.innerWidth) {
    without.push(table.textContent.slice(0, 80));
  }
}
return without;
"""
"""Tables whose row labels leave no room for a number."""

PAPER = 718
"""Width of a sheet of A4 less Chromium's margins, in CSS pixels."""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as window:
        yield window


def learned(variant: str, backbone: Path, folder: Path) -> Learner:
    learner = make_learner(variant, backbone, folder)
    for task in TASKS:
        learner.learn(task)
    return learner


@pytest.fixture(scope="module")
def sapt(
    backbone_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Learner:
    return learned("sapt", backbone_folder("llama"), tmp_path_factory.mktemp("pages") / "sapt")


@pytest.fixture(scope="module")
def report(
    sapt: Learner,
    backbone_folder: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp("report")
    other = learned("seekr", backbone_folder("llama"), folder / "seekr")
    page = folder / "report.html"
    page.write_text(render([summarise(r.run.path) for r in (sapt, other)]), encoding="utf-8")
    return page


@contextmanager
def served(learner: Learner, **environment: str) -> Iterator[str]:
    """The address at which `retain serve` answers for a run."""
    command = [sys.executable, "-m", "retain", "serve", learner.run.path, "--port", "0"]
    with subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline().split()
            yield line[line.index("at") + 1]
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def address(sapt: Learner) -> Iterator[str]:
    with served(sapt) as url:
        yield url


def looks_right(chromium: Browser) -> None:
    assert chromium.run(FAINT) == []
    assert chromium.run(CUT) == []
    widths = "return [document.documentElement.scrollWidth, window.innerWidth]"
    needed, given = chromium.run(widths)
    assert needed <= given


@LOOKS
def test_the_report(
    chromium: Browser, report: Path, width: int, dark: bool, tmp_path: Path
) -> None:
    chromium.open(report.as_uri(), width, dark)
    chromium.run("for (const part of document.querySelectorAll('details')) part.open = true")
    chromium.picture(tmp_path / "page.png")
    assert chromium.run("return document.querySelectorAll('svg').length") > 2
    assert chromium.console() == []
    assert set(chromium.requests()) == {report.as_uri()}
    looks_right(chromium)


def test_the_report_of_long_names_on_a_phone(chromium: Browser, report: Path) -> None:
    chromium.open(report.as_uri(), 360, False)
    chromium.run("for (const part of document.querySelectorAll('details')) part.open = true")
    assert chromium.run(NUMBERLESS) == []


def test_the_report_of_fifteen_tasks_on_paper(
    chromium: Browser, sapt: Learner, tmp_path: Path
) -> None:
    """Also closed tables are there, and none is cut."""
    run = summarise(sapt.run.path)
    names = [f"task{1000 + j}_{LONG.partition('_')[2]}" for j in range(15)]
    scores: list[list[float | None]] = [[100.0] * (i + 1) for i in range(15)]
    page = tmp_path / "report.html"
    long = replace(run, tasks=names, matrix=scores, costs=[], dropped=None)
    page.write_text(render([run, long]), encoding="utf-8")
    chromium.open(page.as_uri(), PAPER, False)
    chromium.print_media(True)
    try:
        chromium.picture(tmp_path / "page.png")
        assert chromium.run(WIDE) == []
        looks_right(chromium)
    finally:
        chromium.print_media(False)


def answered(chromium: Browser) -> dict[str, float]:
    """The weights that the page shows, once the answer is whole."""
    deadline = time.monotonic() + 60
    while chromium.run("return document.getElementById('send').disabled"):
        assert time.monotonic() < deadline
    rows = chromium.run(
        "return [...document.querySelectorAll('#routing li')]"
        ".map((row) => [...row.children].map((part) => part.textContent))"
    )
    return {name: float(weight) for name, _, weight in rows}


@LOOKS
def test_the_served_page(
    chromium: Browser, address: str, sapt: Learner, width: int, dark: bool, tmp_path: Path
) -> None:
    (expected,) = sapt.answers([PROMPT])
    assert expected.routing is not None
    chromium.open(address, width, dark)
    chromium.write("#prompt", PROMPT)
    chromium.click("#send")
    weights = answered(chromium)
    chromium.picture(tmp_path / "page.png")
    assert chromium.run("return document.getElementById('answer').textContent") == expected.output
    assert weights == pytest.approx(expected.routing, abs=0.006)
    assert chromium.run("return document.getElementById('trouble').textContent") == ""
    assert chromium.console() == []
    asked = {url.removeprefix(address) for url in chromium.requests()}
    assert asked == {"", "v1/models", "v1/chat/completions"}
    looks_right(chromium)


def test_the_served_page_asks_for_a_key_and_a_task(
    chromium: Browser, backbone_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    pertask = learned("pertask", backbone_folder("t5"), tmp_path / "run")
    with served(pertask, RETAIN_API_KEY="secret") as url:
        chromium.open(url, 360, False)
        answered(chromium)
        trouble = chromium.run("return document.getElementById('trouble').textContent")
        assert "needs its key" in trouble
        chromium.write("#key", "secret")
        chromium.write("#prompt", f"{PROMPT}\ue009\ue007")  # Ctrl + Enter
        assert answered(chromium) == {"copy": 1.0, LONG: 0.0, "letter": 0.0}
        chromium.picture(tmp_path / "page.png")
        chromium.write("#task", "letter")
        chromium.click("#send")
        assert answered(chromium) == {"copy": 0.0, LONG: 0.0, "letter": 1.0}
        shown = chromium.run("return document.getElementById('answer').textContent")
    assert json.dumps(shown) == json.dumps(pertask.generate([PROMPT], "letter")[0])
