"""What `retain methods` lists: from a file where no other methods are installed or named.

Importing the methods takes seconds, since it imports torch and transformers. `methods.json` has
what is listed of retain's own; docs/make_reference.py writes it, and a test compares it.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import entry_points
from pathlib import Path

from retain.errors import RetainError

INDEX = Path(__file__).with_name("methods.json")
Listed = tuple[str, str, str]
"""What a method needs, its idea, and what it stores."""


def known_methods() -> dict[str, Listed]:
    """Returns what is listed of every method by its name, in order."""
    if "retain.methods" in sys.modules or entry_points(group="retain.methods"):
        return loaded_methods()
    stored = json.loads(INDEX.read_text(encoding="utf-8"))
    return {name: (needs, idea, stores) for name, (needs, idea, stores) in stored.items()}


def loaded_methods() -> dict[str, Listed]:
    """Returns the same from the methods themselves; an error in place of one that has one."""
    from retain.methods import find, list_methods

    found: dict[str, Listed] = {}
    for name in list_methods():
        try:
            method = find(name)
        except RetainError as error:
            found[name] = "", f"error: {error}", ""
            continue
        assert method is not None
        traits = method.traits
        needs = {"task name": traits.needs_task_id, "old data": traits.needs_old_data}
        words = ", ".join(need for need, needed in needs.items() if needed)
        found[name] = words or "neither", traits.idea, traits.stores
    return found
