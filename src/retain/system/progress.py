"""Progress of a run: messages, and the state of the current phase or evaluation."""

from __future__ import annotations

import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from retain.system.printing import escaped


class Progress:
    """Receiver of a run's events; this base class prints nothing.

    Attributes:
        stopping: set to True when the user asks to stop. The current step is finished and saved,
            and then a `StoppedError` is raised.
        prefix: stands before every line, such as the name of a run.
    """

    stopping = False
    prefix = ""

    def message(self, text: str) -> None:
        """Receives one line of text."""

    def start(self, label: str, total: int, unit: str) -> None:
        """Begins a phase or an evaluation.

        Args:
            label: what is being done.
            total: the number of units.
            unit: what is counted, such as steps or examples.
        """

    def update(self, done: int, parts: Mapping[str, float] | None = None) -> None:
        """Reports that `done` units of the total are done.

        `parts` are the parts of a training step's loss, or the score of an evaluation, by name.
        """

    def finish(self) -> None:
        """Ends the phase or evaluation."""


class ConsoleProgress(Progress):
    """Progress bar with loss parts and time left; plain lines if the console is no terminal."""

    INTERVAL = 10.0
    """Seconds between two plain lines."""

    def __init__(self, console: Console, prefix: str = "") -> None:
        self.console = console
        self.prefix = f"{prefix} · " if prefix else ""
        self._bar: RichProgress | None = None

    def message(self, text: str) -> None:
        """Prints one line of text."""
        self._print(f"{self.prefix}{text}")

    def start(self, label: str, total: int, unit: str) -> None:
        """Shows an empty bar."""
        self._label, self._total, self._unit = escaped(f"{self.prefix}{label}"), total, unit
        self._started = self._printed = time.monotonic()
        self._first: int | None = None  # units that an interrupted run had already done
        self._line = ""
        if self.console.is_terminal:
            self._bar = RichProgress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TextColumn("{task.fields[unit]}  {task.fields[parts]}", markup=False),
                TimeRemainingColumn(),
                console=self.console,
            )
            self._bar.start()
            self._task = self._bar.add_task(self._label, total=total, unit=unit, parts="")

    def update(self, done: int, parts: Mapping[str, float] | None = None) -> None:
        """Moves the bar, or prints a line every ten seconds."""
        parts_text = " ".join(f"{name} {value:.3f}" for name, value in (parts or {}).items())
        now = time.monotonic()
        self._first = done if self._first is None else self._first
        rate = (done - self._first) / (now - self._started) if done > self._first else 0.0
        remaining = f"{(self._total - done) / rate:.0f} s left" if rate else ""
        elapsed = f"{now - self._started:.0f} s"
        self._line = f"{self._label}: {done}/{self._total} {self._unit}  {parts_text}"
        if self._bar is not None:
            self._bar.update(self._task, completed=done, parts=parts_text)
        elif now - self._printed > self.INTERVAL and done < self._total:
            self._printed = now
            self._print(f"{self._line}  {remaining}".rstrip())
        self._line = f"{self._line}  {elapsed}"

    def finish(self) -> None:
        """Stops the bar, or prints its last line if there is no terminal."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        elif self._line:
            self._print(self._line)

    def _print(self, line: str) -> None:
        self.console.print(escaped(line), highlight=False, markup=False, soft_wrap=True)
