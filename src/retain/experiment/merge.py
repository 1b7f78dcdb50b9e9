"""Nested settings put over each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings key by key; of anything else, the one above."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def leaves(values: Mapping[str, Any], depth: int = 3) -> Iterator[str]:
    """The fields that are no mappings, such as `training.max_steps`, or are `depth` levels down."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value and depth > 1:
            yield from (f"{key}.{below}" for below in leaves(value, depth - 1))
        else:
            yield str(key)
