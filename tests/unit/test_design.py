"""docs/design.md lists the parts in an order in which imports point downwards only."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "retain"


def parts() -> list[str]:
    """The names of modules and packages, as the page lists them."""
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    listed = text.split("```")[1]
    names: list[str] = re.findall(r"^(\w+)(?:\.py|/) ", listed, re.MULTILINE)
    return names


def part_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """The parts that a module imports, inside of functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module == "retain":
            names = [f"retain.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        found |= {name.split(".")[1] for name in names if name.startswith("retain.")}
    return found


def test_every_part_is_listed() -> None:
    there = {part_of(path) for path in SOURCE.rglob("*.py")} - {"__init__", "__main__"}
    assert sorted(parts()) == sorted(there)


def test_imports_point_downwards() -> None:
    order = {name: place for place, name in enumerate(parts())}
    upwards = [
        f"{path.relative_to(SOURCE)} imports {name}"
        for path in sorted(SOURCE.rglob("*.py"))
        if (own := part_of(path)) in order
        for name in imported(path)
        if name in order and order[name] < order[own]
    ]
    assert not upwards
