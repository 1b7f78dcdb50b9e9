"""Conversations as the tokenizer's chat template writes them, rendered within limits.

A chat template is a program that comes with a model. Whatever it raises becomes one line, and it
gets bounded time. Its first rendering also gets bounded memory.
"""

from __future__ import annotations

import ctypes
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment, TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from retain.errors import RetainError, first_line

Turn = Mapping[str, str]
"""A turn of a conversation: `role` and `content`."""

ANSWER = "\udfe0"
"""Stands for the answer where its place in a finished conversation is looked for.

Half a character (a lone surrogate) is in no text, so that no text can be taken for a mark, and a
template that changes case leaves it as it is.
"""
HALF = re.compile("[\ud800-\udfff]")
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
        end: the text that ends the answer's turn.
    """

    prompt: str
    answer: str
    end: str


class ChatTemplate:
    """The chat template of a tokenizer.

    Args:
        tokenizer: has a chat template.
        name: the backbone's, for errors.

    Attributes:
        is_tried: whether it was rendered once, with limited memory. The limit is that of the whole
            process, so a server renders once before it begins.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        self._tokenizer = tokenizer
        self._name = name
        self.is_tried = False
        self._takes_parts: bool | None = None  # not known before the first rendering

    def render(self, turns: Sequence[Turn], answer: str = "") -> Rendered:
        """Renders a conversation that ends before the assistant's answer.

        The answer's place is found by rendering a finished conversation with a marker as its
        answer. What the template writes between the generation prompt and the answer, such as an
        empty reasoning block, belongs to the prompt.

        Raises:
            RetainError: when the template refuses the conversation, leaves answers out, fails, or
                takes too long.
        """
        opened = self._write(turns, add_generation_prompt=True)
        finished = self._write([*turns, {"role": "assistant", "content": ANSWER}])
        before, marker, after = finished.rpartition(ANSWER)
        is_twice = before.startswith(opened) and ANSWER in before[len(opened) :]
        if not marker or is_twice:
            does = "writes an answer twice" if marker else "leaves the assistant's answers out"
            raise RetainError(
                f"the chat template of backbone '{self._name}' {does}; "
                "set prompt.chat_template: false"
            )
        if not before.startswith(opened):  # say, a reasoning block is opened for a new answer only
            return Rendered(opened, answer, after)
        # Tokenizers join a space and the word after it, so a prompt does not end in one.
        prompt = opened + before[len(opened) :].rstrip(" ")
        return Rendered(prompt, before[len(prompt) :] + answer, after)

    def left_out(self, turns: Sequence[Turn]) -> list[Turn]:
        """Returns the turns of a conversation whose content the template does not write."""
        marks = [f"{ANSWER}{number}{ANSWER}" for number in range(len(turns))]
        marked = [{**turn, "content": mark} for turn, mark in zip(turns, marks, strict=True)]
        text = self._write(marked, add_generation_prompt=True)
        return [turn for turn, mark in zip(turns, marks, strict=True) if mark not in text]

    def _write(self, turns: Sequence[Turn], **options: Any) -> str:
        start = HALF.sub("", turns[0]["content"])[:EXCERPT]
        says = f"the chat template of backbone '{self._name}'"
        if reason := _unsteady(str(self._tokenizer.chat_template)):
            raise RetainError(f"{says} {reason}; set prompt.chat_template: false")
        advice = "change the conversation, or set prompt.chat_template: false"
        try:
            with _limited_time(SECONDS), _limited_memory(None if self.is_tried else MEMORY):
                if self._takes_parts is None:
                    self._takes_parts = self._writes_parts_only()
                text = self._apply(turns, self._takes_parts, **options)
            self.is_tried = True
        except _TooLongError:
            raise RetainError(
                f"{says} takes more than {SECONDS:g} s for the conversation that starts with "
                f"{start!r}; {advice}"
            ) from None
        except Exception as error:  # a template raises whatever the code in it raises
            reason = "out of memory" if isinstance(error, MemoryError) else first_line(error)
            raise RetainError(
                f"{says} rejects the conversation that starts with {start!r} "
                f"({HALF.sub('', reason)}); {advice}"
            ) from None
        if not isinstance(text, str) or not text.strip():
            raise RetainError(f"{says} writes nothing of the conversation {start!r}; {advice}")
        return text

    def _writes_parts_only(self) -> bool:
        """Whether the template writes a user's text only if it comes as a list of parts.

        Templates of models that also read images may go through the parts of a content, and write
        nothing of a content that is one text.
        """
        turn = {"role": "user", "content": ANSWER}
        writes = []
        for parts in (False, True):
            try:
                writes.append(ANSWER in self._apply([turn], parts, add_generation_prompt=True))
            except Exception:  # whatever the code in a template raises
                writes.append(False)
        return writes == [False, True]

    def _apply(self, turns: Sequence[Turn], parts: bool, **options: Any) -> Any:
        conversation: list[dict[str, Any]] = [dict(turn) for turn in turns]
        if parts:
            for turn in conversation:
                turn["content"] = [{"type": "text", "text": turn["content"]}]
        return self._tokenizer.apply_chat_template(conversation, tokenize=False, **options)


@cache
def _unsteady(template: str) -> str | None:
    """Says what in a template's code no limit ends, or makes a text another one each time."""
    with suppress(TemplateSyntaxError):  # which its first rendering reports
        for _, kind, token in Environment(autoescape=True).lex(template):
            if kind == "operator" and token == "**":
                return "computes a power, which may take for ever"
            if kind == "name" and token in ("random", "lipsum"):
                return f"draws at random ({token})"
    return None


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
