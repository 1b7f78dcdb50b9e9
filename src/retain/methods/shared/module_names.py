"""Short names of a model's modules, for tables."""

from __future__ import annotations

import re
from collections.abc import Sequence


def short_names(modules: Sequence[str]) -> list[str]:
    """Returns what distinguishes modules from each other: "layer 3", or "decoder.3.EncDec".

    Parts that all names share are left out, except the layer's number, and so are further numbers
    where the rest is enough. Names that are not built alike stay whole.
    """
    parts = [name.split(".") for name in modules]
    if len({len(each) for each in parts}) > 1:
        return list(modules)
    columns = [c for c in zip(*parts, strict=True) if c[0].isdigit() or len(set(c)) > 1]
    numbers = [column for column in columns if column[0].isdigit()]
    fewer = [column for column in columns if column not in numbers[1:]]
    if len(set(zip(*fewer, strict=True))) == len(modules):
        columns = fewer
    names = [".".join(each) for each in zip(*columns, strict=True)]
    names = [re.sub(r"(?<=\w)_?(attention|attn)$", "", name, flags=re.IGNORECASE) for name in names]
    return [f"layer {name}" if name.isdigit() else name for name in names]
