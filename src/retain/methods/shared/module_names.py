"""Short names of a model's modules, for tables."""

from __future__ import annotations

import re
from collections.abc import Sequence


def short_names(modules: Sequence[str]) -> list[str]:
    """Shortens module names to what distinguishes them: "layer 3", or "decoder.3.EncDec".

    Leaves out the parts that all names share, except the layer's number, and further numbers that
    are not needed. Names with different numbers of parts are returned unchanged.
    """
    split_names = [name.split(".") for name in modules]
    if len({len(parts) for parts in split_names}) > 1:
        return list(modules)
    columns = [
        column
        for column in zip(*split_names, strict=True)
        if column[0].isdigit() or len(set(column)) > 1
    ]
    numbers = [column for column in columns if column[0].isdigit()]
    fewer = [column for column in columns if column not in numbers[1:]]
    if len(set(zip(*fewer, strict=True))) == len(modules):
        columns = fewer
    names = [".".join(parts) for parts in zip(*columns, strict=True)]
    names = [re.sub(r"(?<=\w)_?(attention|attn)$", "", name, flags=re.IGNORECASE) for name in names]
    return [f"layer {name}" if name.isdigit() else name for name in names]
