"""What `import retain` offers."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from importlib.resources import files

import pytest

import retain

PUBLIC = {
    "Answer",
    "Example",
    "Learner",
    "Method",
    "Phase",
    "RetainError",
    "Task",
    "__version__",
    "list_methods",
    "load_stream",
}


def test_public_names() -> None:
    assert set(dir(retain)) == PUBLIC
    for name in PUBLIC:
        assert getattr(retain, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Lerner'"):
        retain.Lerner  # noqa: B018


def test_version() -> None:
    assert retain.__version__ == version("retain")


def test_import_loads_no_torch() -> None:
    code = (
        "import sys, retain; retain.RetainError; dir(retain); retain.__version__; "
        "print([name for name in ('torch', 'transformers', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_types_are_for_users() -> None:
    """PEP 561: without the marker, a type checker takes everything of a package to be Any."""
    assert files("retain").joinpath("py.typed").is_file()
