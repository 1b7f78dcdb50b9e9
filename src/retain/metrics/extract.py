"""What is cut from an answer before a metric sees it, generated answer and reference alike."""

from __future__ import annotations

from collections.abc import Callable

from retain.errors import RetainError

WHOLE = "whole"
"""The extraction of a task that names none."""
MARKERS = ("\nAnswer:", "\n回答:", "\n答案:")
"""What stands before an answer that comes after its reasons; the first one in this order counts."""


def whole(text: str) -> str:
    """Returns the answer as it is."""
    return text


def short_answer(text: str) -> str:
    """Returns the answer without its reasoning, as SEEKR's re_eval.py cuts it.

    In a text with a line that begins with `Reasoning:` it is what stands before that line.
    Otherwise it is what follows a line's `Answer:` (or `回答:`, `答案:`), up to the next such line.
    A text without these marks is its own answer. Full-width colons become plain ones. The first
    line does not count: a text that begins with `Answer:` stays whole.
    """
    text = text.replace("：", ":")
    if "\nReasoning:" in text:
        return text.split("\nReasoning:")[0]
    for marker in MARKERS:
        if marker in text:
            return text.split(marker)[1]
    return text


EXTRACTIONS: dict[str, Callable[[str], str]] = {WHOLE: whole, "short_answer": short_answer}
"""By name; a task's `extract` is one of them."""


def check_extraction_name(extract: str, where: str) -> None:
    """Raises RetainError for a name that is not in EXTRACTIONS; `where` starts the message."""
    if extract not in EXTRACTIONS:
        raise RetainError(
            f"{where}: extract '{extract}' is unknown; choose one of {', '.join(EXTRACTIONS)}"
        )
