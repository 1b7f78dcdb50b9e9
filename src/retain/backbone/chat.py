"""Conversations as the tokenizer's chat template writes them, rendered within limits.

A chat template is a program that comes with a model. Whatever it raises becomes one line, and it
gets bounded time. Its first rendering also gets bounded memory.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from retain.errors import RetainError, first_line

Turn = Mapping[str, str]
"""A turn of a conversation: `role` and `content`."""

ANSWER = "\udfe0answer\udfe0"
"""Stands for the answer where its place in a finished conversation is looked for.

Half a character (a lone surrogate) is in no text, so that no text can be taken for a mark.
"""
EXCERPT = 40
"""Number of characters of a text that an error message shows."""
SECONDS = 10.0
"""How long one rendering may take."""
MEMORY = 2**31
"""Bytes that the first rendering may take."""


@dataclass(frozen=True)
class Rendered:
    """A conversation up to its answer, and what the template writes after the answer.

    Attributes:
        prompt: the text before the answer, the same in training and in generation.
        answer: the white space that the template puts directly before the answer, and the answer.
        end: the text that ends the answer's turn; empty if the template does not write answers.
    """

    prompt: str
    answer: str
    end: str


class ChatTemplate:
    """The chat template of a tokenizer.

    Args:
        tokenizer: has a chat template.
        name: the backbone's, for errors.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        self._tokenizer = tokenizer
        self._name = name
        self._is_tried = False

    def render(self, turns: Sequence[Turn], answer: str = "") -> Rendered:
        """Renders a conversation that ends before the assistant's answer.

        The answer's place is found by rendering a finished conversation with a marker as its
        answer. What the template writes between the generation prompt and the answer, such as an
        empty reasoning block, belongs to the prompt.

        Raises:
            RetainError: when the template refuses the conversation, fails, or takes too long.
        """
        opened = self._write(turns, add_generation_prompt=True)
        finished = self._write([*turns, {"role": "assistant", "content": ANSWER}], answer=True)
        before, marker, after = finished.partition(ANSWER)
        if not marker:  # the template leaves answers out
            space = "" if opened[-1:].isspace() else " "
            return Rendered(opened, space + answer, "")
        if not before.startswith(opened):  # say, a reasoning block is opened for a new answer only
            return Rendered(opened, answer, after)
        # Tokenizers join a space and the word after it, so a prompt does not end in one.
        prompt = opened + before[len(opened) :].rstrip(" ")
        return Rendered(prompt, before[len(prompt) :] + answer, after)

    def _write(self, turns: Sequence[Turn], answer: bool = False, **options: Any) -> str:
        start = turns[0]["content"][:EXCERPT]
        says = f"the chat template of backbone '{self._name}'"
        advice = "change the conversation, or set prompt.chat_template: false"
        try:
            with _limited_time(SECONDS), _limited_memory(None if self._is_tried else MEMORY):
                text = self._tokenizer.apply_chat_template(
                    [dict(turn) for turn in turns], tokenize=False, **options
                )
            self._is_tried = True
        except _TooLongError:
            raise RetainError(
                f"{says} takes more than {SECONDS:g} s for the conversation that starts with "
                f"{start!r}; {advice}"
            ) from None
        except Exception as error:  # a template raises whatever the code in it raises
            if answer:  # a template that refuses answers can still ask
                return ""
            reason = "out of memory" if isinstance(error, MemoryError) else first_line(error)
            raise RetainError(
                f"{says} rejects the conversation that starts with {start!r} ({reason}); {advice}"
            ) from None
        if not isinstance(text, str) or not (text.strip() or answer):
            raise RetainError(f"{says} writes nothing of the conversation {start!r}; {advice}")
        return text


class _TooLongError(BaseException):
    """Raised in a thread whose rendering takes too long. No template can catch it."""


class _Watch:
    """Raises an exception in threads that are overdue.

    One thread looks after all others, because a timer of its own for each rendering would take
    longer than the rendering.
    """

    def __init__(self) -> None:
        self._deadlines: dict[int, float] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def begin(self, seconds: float) -> None:
        with self._lock:
            self._deadlines[threading.get_ident()] = time.monotonic() + seconds
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, daemon=True, name="templates")
                self._thread.start()

    def end(self) -> None:
        with self._lock:
            self._deadlines.pop(threading.get_ident(), None)

    def _run(self) -> None:
        idle = 0
        while idle < 2:  # ends when nothing was rendered for a while
            time.sleep(min(SECONDS / 4, 1.0))
            with self._lock:
                idle = 0 if self._deadlines else idle + 1
                now = time.monotonic()
                for thread, deadline in list(self._deadlines.items()):
                    if now > deadline:
                        del self._deadlines[thread]
                        ctypes.pythonapi.PyThreadState_SetAsyncExc(
                            ctypes.c_ulong(thread), ctypes.py_object(_TooLongError)
                        )


_WATCH = _Watch()


@contextmanager
def _limited_time(seconds: float) -> Iterator[None]:
    _WATCH.begin(seconds)
    try:
        yield
    finally:
        _WATCH.end()


@contextmanager
def _limited_memory(more: int | None) -> Iterator[None]:
    """Limits the memory of this process to what it has and `more` bytes, where systems can."""
    if more is None or not sys.platform.startswith("linux"):
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm", encoding="ascii") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    limit = now + more if hard == resource.RLIM_INFINITY else min(now + more, hard)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
