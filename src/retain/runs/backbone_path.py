"""The path of a run's backbone: how the run stores it, and where it is found again."""

from __future__ import annotations

import os
from pathlib import Path


def stored_name(name: str, run: Path) -> str:
    """Returns a backbone's name as the run in the folder `run` stores it.

    A path that starts from the working directory begins with `./` where the run lies below that
    directory, and is absolute elsewhere. So it is never taken for a hub's id, and is found from the
    run (`found_from`).
    """
    if not name or os.path.isabs(name) or name.startswith("~") or not os.path.exists(name):
        return name
    below = os.path.realpath(run).startswith(os.path.join(os.path.realpath("."), ""))
    inside = os.path.normpath(name).split(os.sep)[0] != ".."
    return f"./{os.path.normpath(name)}" if below and inside else os.path.abspath(name)


def found_from(run: Path, name: str) -> str:
    """Returns where the backbone of a run is: a path from the run's folder, or from one above it.

    What is not found there is looked for from the working directory; a hub's id stays what it is.
    A folder of that name which is no model counts only where no other is found.
    """
    if not name.startswith("."):
        return name
    folder = Path(os.path.realpath(run))
    places = [os.path.normpath(above / name) for above in (folder, *folder.parents)]
    models = (p for p in places if os.path.isfile(p) or os.path.isfile(f"{p}/config.json"))
    return next(models, next(filter(os.path.exists, places), name))


def is_same(name: str, other: str) -> bool:
    """Whether two names are of one backbone: `./x`, `x` and its absolute path are."""
    if os.path.exists(name) and os.path.exists(other):
        return os.path.samefile(name, other)
    return os.path.normpath(name) == os.path.normpath(other)
