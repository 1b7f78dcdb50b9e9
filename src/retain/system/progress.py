"""What a run tells while it works."""

from __future__ import annotations

import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress


class Progress:
    """Receives a run's events. This one is silent.

    Attributes:
        stopping: set when the user asks for an end: the step at hand is finished and saved, and
            then the work ends with a `StoppedError`.
    """

    stopping = False

    def message(self, text: str) -> None:
        """One line of news."""

    def start(self, label: str, total: int, unit: str) -> None:
        """A stretch of work begins: a phase (in steps) or an evaluation (in examples)."""

    def update(self, done: int, parts: Mapping[str, float] | None = None) -> None:
        """`done` of the total are done; `parts` are the loss parts of a training step."""

    def finish(self) -> None:
        """The stretch ends."""


class ConsoleProgress(Progress):
    """A bar with loss parts and time left; a few plain lines where there is no terminal."""

    INTERVAL = 10.0

    def __init__(self, console: Console, prefix: str = "") -> None:
        self.console = console
        self.prefix = f"{prefix} · " if prefix else ""
        self._bar: RichProgress | None = None

    def message(self, text: str) -> None:
        """Prints the line."""
        self._print(f"{self.prefix}{text}")

    def start(self, label: str, total: int, unit: str) -> None:
        """Shows the bar."""
        self._label, self._total, self._unit = f"{self.prefix}{label}", total, unit
        self._began = self._shown = time.monotonic()
        self._first: int | None = None
        self._line = ""
        if self.console.is_terminal:
            self._bar = RichProgress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TextColumn("{task.fields[unit]}  {task.fields[parts]}"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self._bar.start()
            self._task = self._bar.add_task(self._label, total=total, unit=unit, parts="")

    def update(self, done: int, parts: Mapping[str, float] | None = None) -> None:
        """Moves the bar, or prints a line every ten seconds."""
        shown = " ".join(f"{name} {value:.3f}" for name, value in (parts or {}).items())
        now = time.monotonic()
        self._first = done if self._first is None else self._first
        rate = (done - self._first) / (now - self._began) if done > self._first else 0.0
        left = f"{(self._total - done) / rate:.0f} s left" if rate else ""
        took = f"{now - self._began:.0f} s"
        self._line = f"{self._label}: {done}/{self._total} {self._unit}  {shown}"
        if self._bar is not None:
            self._bar.update(self._task, completed=done, parts=shown)
        elif now - self._shown > self.INTERVAL and done < self._total:
            self._shown = now
            self._print(f"{self._line}  {left}".rstrip())
        self._line = f"{self._line}  {took}"

    def finish(self) -> None:
        """Removes the bar and leaves its last line."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        elif self._line:
            self._print(self._line)

    def _print(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)
