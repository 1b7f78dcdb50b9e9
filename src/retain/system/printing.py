"""Names of others where they are printed: terminals, pages, Markdown and CSV obey none of them.

A task's name, a prompt or a file's name is text of whoever wrote it. In a terminal some characters
are commands, in a spreadsheet a first character can make a formula, and characters that change the
direction of text can show a name as another.
"""

from __future__ import annotations

import csv
import io
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

COMMANDS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""Control characters (C0 and C1, but for tab and line feed), line separators, and bidirectional
embeddings, overrides and isolates."""
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What a cell begins with that a spreadsheet computes; the last four are the full-width forms."""


def escaped(text: str) -> str:
    """Returns a text with the characters of `COMMANDS` spelled as in JSON, such as `\\u001b`."""
    return COMMANDS.sub(lambda command: f"\\u{ord(command[0]):04x}", text)


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """Returns rows as CSV; a text that a spreadsheet would compute begins with an apostrophe."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, int | float):
        return value
    shown = str(value)
    return escaped(f"'{shown}" if shown.lstrip(" ").startswith(FORMULA) else shown)


OUTPUT = "standard output"


@contextmanager
def to_output() -> Iterator[None]:
    """Names standard output in an error of writing to it."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, OUTPUT) from None


class PlainConsole(Console):
    """A console of rich's that prints names as they are, and their control characters escaped.

    Rich removes a few of them, such as a backspace, when it makes a `Text`. So whoever makes one of
    a name that has to be told from others calls `escaped` before.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(emoji=False, **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """Prints as rich does; an error names standard output."""
        with to_output():
            super().print(*objects, **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Renders as rich does; commands in a text are escaped, rich's own are not."""
        for segment in super().render(renderable, options):
            plain = segment.control or not COMMANDS.search(segment.text)
            yield segment if plain else Segment(escaped(segment.text), segment.style)


class ErrorConsole(PlainConsole):
    """The console of standard error. A message that cannot be written there ends no work."""

    def __init__(self, **options: Any) -> None:
        super().__init__(stderr=True, **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """Prints as rich does; nothing, where standard error takes nothing."""
        with suppress(OSError):
            super().print(*objects, **options)

    def on_broken_pipe(self) -> None:
        """Stays silent from now on: nobody reads standard error any more."""
        self.quiet = True


def open_standard_streams() -> None:
    """Opens /dev/null as each standard stream that is closed.

    Python leaves a closed stream None. The next file that is opened would get its number, and what
    a library writes to standard output would land in that file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        null = os.open(os.devnull, os.O_RDWR)
        if null != number and not _is_open(number):
            os.dup2(null, number)
            os.close(null)
            null = number
        mode = "w" if number else "r"
        setattr(sys, name, open(null, mode, encoding="utf-8"))  # noqa: SIM115


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def flush_or_discard(*streams: Any) -> None:
    """Writes what is buffered, or discards it: else the interpreter's shutdown would raise."""
    for stream in streams:
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
