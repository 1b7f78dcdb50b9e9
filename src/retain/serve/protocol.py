"""OpenAI's chat-completions protocol: requests, responses and errors as JSON."""

from __future__ import annotations

import codecs
import json
import reprlib
import time
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import pydantic_core
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    field_validator,
    model_validator,
)

from retain.errors import RetainError
from retain.experiment.validation import UnknownFieldError, check
from retain.learner.learned_model import Answer
from retain.serve.batcher import Job
from retain.tasks import Example, json_text
from retain.tasks.conversation import Role, known_role, one_text, user_text

Stop = Annotated[str, Field(min_length=1, max_length=200)]
"""A stop text; its length is limited, since every piece of a stream is compared with it."""


class Message(BaseModel):
    """One turn of a conversation, with roles and text parts as in training data.

    Other fields are ignored. An assistant's `content` may be null or missing, which is an empty
    text, unless the turn has something else in its place.
    """

    role: Annotated[Role, BeforeValidator(known_role)]
    content: Annotated[str, BeforeValidator(one_text)]

    @model_validator(mode="before")
    @classmethod
    def _empty_turn(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("role") != "assistant":
            return values
        if values.get("content") is not None:
            return values
        for name in ("tool_calls", "function_call", "refusal", "audio"):
            if values.get(name):
                raise ValueError(f"it has {name} instead of a text, which is not supported")
        return {**values, "content": ""}


class StreamOptions(BaseModel):
    """Options of a stream: whether its end reports the numbers of tokens."""

    include_usage: bool = False


NOTHING: dict[str, tuple[Any, ...]] = {
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
}
"""OpenAI's fields that are not offered, with the values that ask for nothing. These are taken."""
DONE = "data: [DONE]\n\n"
"""The end of a stream, also of one that ends with an error."""
MOST_MESSAGES = 1000
"""Maximum number of messages, which a chat template runs over."""


class ChatRequest(BaseModel):
    """The fields of a request; `read_request` makes it. An unknown field is refused.

    Two fields are specific to retain: `task`, the task's name for methods that need it, and
    `routing`, whether the response has the weights over blocks. A response has a `note` if its
    prompt is of no learned task. Answers are greedy, like those of `retain generate`. Sampling
    settings are accepted without effect, since most clients always send them.
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
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: dict[str, Any] | None = None

    @field_validator("n", "max_tokens", "max_completion_tokens", "seed", mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        if isinstance(value, bool):  # which is 1 to Python
            raise ValueError("expected a number")
        return value

    @field_validator("stop", mode="before")
    @classmethod
    def _stops(cls, stop: Any) -> Any:
        return [stop] if isinstance(stop, str) else stop

    @property
    def limit(self) -> int | None:
        """Maximum number of answer tokens, or None; the run's own limit also applies."""
        limits = [n for n in (self.max_tokens, self.max_completion_tokens) if n is not None]
        return min(limits, default=None)

    def example(self) -> Example:
        """Returns the conversation in the form that training uses.

        Training reads chat `messages` in two ways. With a chat template, the template formats them.
        Without one, their texts are joined with line breaks. Routing reads the user's text. A
        request is read the same way, as the messages before a training answer. So a single user
        message equals the same prompt in `retain generate`.

        Raises:
            RetainError: if the last message is not the user's or is empty.
        """
        messages = tuple(message.model_dump() for message in self.messages)
        if not messages or messages[-1]["role"] != "user" or not messages[-1]["content"].strip():
            raise RetainError(
                "request: the last of 'messages' must be a non-empty text with role 'user'; add it"
            )
        return Example(user_text(messages), ("",), messages)


def read_request(content: bytes) -> ChatRequest:
    """Reads and checks the body of a request. A null field counts as absent.

    Raises:
        RetainError: one line with the first thing that is wrong.
    """
    content = content.removeprefix(codecs.BOM_UTF8)
    try:
        values = pydantic_core.from_json(content)  # which limits how deep it is
        json_text.parse(content.decode())  # and this refuses a key that is there twice
    except ValueError as error:
        raise RetainError(f"request: not JSON ({error}); correct it") from None
    if isinstance(values, dict):
        values = {name: value for name, value in values.items() if value is not None}
        for name, value in values.items():
            if value not in NOTHING.get(name, (value,)):
                taken = " or ".join(map(json.dumps, NOTHING[name]))
                raise RetainError(
                    f"request: field '{name}': only {taken} is supported (got "
                    f"{reprlib.repr(value)[:60]}); remove it"
                )
            if name not in ChatRequest.model_fields and name not in NOTHING:
                raise UnknownFieldError("request", name[:60], ChatRequest.model_fields)
        values = {name: value for name, value in values.items() if name not in NOTHING}
        messages = values.get("messages")
        if isinstance(messages, list) and len(messages) > MOST_MESSAGES:
            raise RetainError(
                f"request: it has {len(messages)} messages, but at most {MOST_MESSAGES} are read; "
                "leave out the first ones"
            )
    return check(ChatRequest, values, "request")


class Completion:
    """The response to one request, as one body or as the chunks of a stream.

    Attributes:
        stopped: whether the answer contains a stop text, which ends it.
    """

    def __init__(self, request: ChatRequest, job: Job, model: str) -> None:
        self._request = request
        self._job = job
        self._text = ""  # the answer so far
        self._sent = 0  # number of its characters that were sent
        self.stopped = False
        self._head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }

    def body(self, answer: Answer) -> dict[str, Any]:
        """Returns the body of a response that does not stream."""
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
        """Returns the first event of a stream."""
        return self._chunk({"role": "assistant", "content": ""})

    def piece(self, text: str) -> str:
        """Adds a piece of the answer and returns the event of the text that is now final.

        It returns "" while the text may be the beginning of a stop text.
        """
        self._text += text
        text, self.stopped = _until_stop(self._text, self._request.stop)
        return self._rest(text if self.stopped else _without_partial_stop(text, self._request.stop))

    def end(self, answer: Answer) -> str:
        """Returns the events after the last piece."""
        text, self.stopped = _until_stop(answer.output, self._request.stop)
        events = self._rest(text) + self._chunk({}, self._finish(), self._routing(answer))
        if self._request.stream_options.include_usage:
            events += event({**self._chunk_head(), "choices": [], "usage": self._usage()})
        return events + DONE

    def _rest(self, text: str) -> str:
        """Returns the event of the part of the answer that was not sent yet."""
        rest, self._sent = text[self._sent :], len(text)
        return self._chunk({"content": rest}) if rest else ""

    def _chunk_head(self) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk"}

    def _chunk(
        self, delta: dict[str, str], finish: str | None = None, more: dict[str, Any] | None = None
    ) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return event({**self._chunk_head(), "choices": [choice], **(more or {})})

    def _routing(self, answer: Answer) -> dict[str, Any]:
        fields = answer.routing_fields()
        if not self._request.routing:
            del fields["routing"]
        return fields

    def _finish(self) -> str:
        return "stop" if self.stopped or self._job.reply.ended else "length"

    def _usage(self) -> dict[str, int]:
        prompt, completion = self._job.prompt_tokens, len(self._job.reply.tokens)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }


def _until_stop(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """Cuts a text before a stop text; returns it and whether there was one.

    The stop text that ends first counts. So the result is the same for a full text and for a text
    that arrives in pieces.
    """
    spans = [(text.index(stop) + len(stop), text.index(stop)) for stop in stops if stop in text]
    return (text[: min(spans)[1]], True) if spans else (text, False)


def _without_partial_stop(text: str, stops: Sequence[str]) -> str:
    """Removes the end of a text that may be the beginning of a stop text."""
    lengths = [n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])]
    return text[: len(text) - max(lengths, default=0)]


def event(data: dict[str, Any]) -> str:
    """Formats a server-sent event."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


def error_body(status: int, message: str) -> dict[str, Any]:
    """Returns an error in OpenAI's format."""
    kinds = {401: "authentication_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}
