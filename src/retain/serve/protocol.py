"""OpenAI's chat completions as JSON: what is asked, what is answered, how it is refused."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator, model_validator

from retain.errors import RetainError
from retain.learner import Answer
from retain.serve.batcher import Job
from retain.tasks import Example, user_text

Stop = Annotated[str, Field(min_length=1, max_length=200)]
"""Bounded, since the end of every piece of a stream is compared with it."""


class Message(BaseModel):
    """One turn; of its other fields nothing is read, as in training data.

    `developer` is OpenAI's newer name for `system`; parts of text are put together line by line.
    """

    role: Literal["system", "user", "assistant"]
    content: str

    @field_validator("role", mode="before")
    @classmethod
    def _known_role(cls, role: Any) -> Any:
        return "system" if role == "developer" else role

    @field_validator("content", mode="before")
    @classmethod
    def _one_text(cls, content: Any) -> Any:
        if not isinstance(content, list):
            return content
        for i, part in enumerate(content):
            kind = part.get("type") if isinstance(part, dict) else None
            if kind != "text":
                raise ValueError(f"part {i} has type {kind!r}; only parts of type 'text' are read")
            if not isinstance(part.get("text"), str):
                raise ValueError(f"part {i} has no field 'text' with a text; add it")
        return "\n".join(part["text"] for part in content)


class StreamOptions(BaseModel):
    """Whether a stream ends with the numbers of tokens."""

    include_usage: bool = False


class ChatRequest(BaseModel):
    """A request's fields; null is the same as left out, and what is not listed is refused.

    `task` and `routing` are retain's own: the task's name for methods that need it, and whether the
    weights over blocks are wanted. Answers are greedy, as `retain generate` has them; settings of
    sampling, which most clients always send, are taken and change nothing.
    """

    model_config = ConfigDict(extra="forbid")

    messages: list[Message]
    model: str | None = None
    task: str | None = None
    routing: bool = False
    max_tokens: PositiveInt | None = None
    max_completion_tokens: PositiveInt | None = None
    stop: Annotated[list[Stop], Field(max_length=4)] = []
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    n: Literal[1] = 1
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    user: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {key: value for key, value in values.items() if value is not None}

    @field_validator("stop", mode="before")
    @classmethod
    def _stops(cls, stop: Any) -> Any:
        return [stop] if isinstance(stop, str) else stop

    @property
    def limit(self) -> int | None:
        """The most tokens that the answer may have; the run's own limit holds as well."""
        asked = [n for n in (self.max_tokens, self.max_completion_tokens) if n is not None]
        return min(asked, default=None)

    def example(self) -> Example:
        """The conversation as training data has it, so that answers are those of training.

        Training takes chat `messages` in two ways: the backbone's chat template writes all of them,
        or, without a template, their texts stand line by line. Routing reads what the user says.
        Here it is the same, with the messages in the place of what comes before a training answer.
        So one message of the user is the prompt of `retain generate`, in either way.

        Raises:
            RetainError: when the user does not have the last word, or says nothing.
        """
        messages = tuple(message.model_dump() for message in self.messages)
        if not messages or messages[-1]["role"] != "user" or not messages[-1]["content"].strip():
            raise RetainError("request: the last of 'messages' must be a text of the user's")
        return Example(user_text(messages), ("",), messages)


class Completion:
    """The answer to one request, whole or as the chunks of a stream.

    Attributes:
        stopped: whether one of the texts to stop at came, so that nothing after it is wanted.
    """

    def __init__(self, request: ChatRequest, job: Job, model: str) -> None:
        self._request = request
        self._job = job
        self._text = ""  # all that the model has told, and how much of it was passed on
        self._told = 0
        self.stopped = False
        self._head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, answer: Answer) -> dict[str, Any]:
        """The body of a response."""
        text, self.stopped = _until_stop(answer.output, self._request.stop)
        message = {"role": "assistant", "content": text}
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [{"index": 0, "message": message, "finish_reason": self._finish()}],
            "usage": self._usage(),
            **self._routing(answer),
        }

    def begin(self) -> str:
        """The first event of a stream."""
        return self._chunk({"role": "assistant", "content": ""})

    def piece(self, text: str) -> str:
        """The event of one more piece of the answer; empty while it may be a text to stop at."""
        self._text += text
        text, self.stopped = _until_stop(self._text, self._request.stop)
        return self._rest(text if self.stopped else _without_begun(text, self._request.stop))

    def end(self, answer: Answer) -> str:
        """The events after the last piece."""
        text, self.stopped = _until_stop(answer.output, self._request.stop)
        last = self._rest(text) + self._chunk({}, self._finish(), self._routing(answer))
        if self._request.stream_options.include_usage:
            last += event({**self._chunk_head(), "choices": [], "usage": self._usage()})
        return last + "data: [DONE]\n\n"

    def _rest(self, text: str) -> str:
        """The event of what was not passed on yet of the answer so far."""
        rest, self._told = text[self._told :], len(text)
        return self._chunk({"content": rest}) if rest else ""

    def _chunk_head(self) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk"}

    def _chunk(
        self, delta: dict[str, str], finish: str | None = None, more: dict[str, Any] | None = None
    ) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return event({**self._chunk_head(), "choices": [choice], **(more or {})})

    def _routing(self, answer: Answer) -> dict[str, Any]:
        return {"routing": answer.routing} if self._request.routing else {}

    def _finish(self) -> str:
        return "stop" if self.stopped or self._job.reply.ended else "length"

    def _usage(self) -> dict[str, int]:
        read, written = self._job.prompt_tokens, len(self._job.reply.tokens)
        return {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
        }


def _until_stop(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """A text before the stop that is whole first, and whether there is one.

    So the text is the same whether it comes at once or grows piece by piece.
    """
    found = [(text.index(stop) + len(stop), text.index(stop)) for stop in stops if stop in text]
    return (text[: min(found)[1]], True) if found else (text, False)


def _without_begun(text: str, stops: Sequence[str]) -> str:
    """A text without the part at its end that may be the beginning of a stop."""
    begun = [n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])]
    return text[: len(text) - max(begun, default=0)]


def event(data: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


def error_body(status: int, message: str) -> dict[str, Any]:
    """A refusal or a failure, in OpenAI's shape."""
    kinds = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error"}
    kind = kinds.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}
