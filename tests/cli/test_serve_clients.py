"""One client's mistake is its own: refusals, failed batches, clients that say nothing, signals."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from fastapi.testclient import TestClient

from retain.backbone.text import Texts
from retain.learner.learned_model import Answer
from retain.learner.learner import Learner
from retain.serve.app import MAX_BODY, create_app
from retain.serve.server import Server
from retain.tasks import Example
from retain.testing.tiny import make_task, save_backbone

CHAT = "/v1/chat/completions"
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
WINDOW = 128
"""Positions of the model; a token a character."""
LIMIT = 12
SYSTEM = [{"role": "system", "content": "brief"}, {"role": "user", "content": "ab"}]


@pytest.fixture(scope="module")
def learner(tmp_path_factory: pytest.TempPathFactory) -> Learner:
    """A run whose template refuses system messages."""
    folder = tmp_path_factory.mktemp("served")
    backbone = save_backbone("llama", folder / "backbone")
    (backbone / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    config = json.loads((backbone / "config.json").read_text())
    config["max_position_embeddings"] = WINDOW
    (backbone / "config.json").write_text(json.dumps(config))
    learner = Learner(
        backbone,
        {"name": "seqlora", "rank": 2},
        folder / "run",
        training={"max_steps": 2, "per_device_train_batch_size": 6, "learning_rate": 0.02},
        evaluation={"max_new_tokens": LIMIT, "batch_size": 4},
        prompt={"chat_template": True},
    )
    learner.learn(make_task("copy"))
    return learner


@pytest.fixture
def client(learner: Learner) -> Iterator[TestClient]:
    with TestClient(create_app(learner)) as client:
        yield client


def body(prompt: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": prompt}], **more}


class Asked:
    """One request, made of the application as a server makes it.

    Its client leaves when `leave` is set. With `whole=False`, the rest of its body never comes.
    """

    def __init__(self, app: Any, sent: dict[str, Any] | bytes, whole: bool = True) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.content = b""
        self.leave = asyncio.Event()
        self._whole = whole
        self._body: bytes | None = sent if isinstance(sent, bytes) else json.dumps(sent).encode()
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "method": "POST",
            "path": CHAT,
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
        }
        self.done = asyncio.create_task(app(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        content, self._body = self._body, None
        if content is not None:
            return {"type": "http.request", "body": content, "more_body": not self._whole}
        await self.leave.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        self.status = message.get("status", self.status)
        self.headers |= dict(message.get("headers", []))
        self.content += message.get("body", b"")

    @property
    def error(self) -> str:
        """The message of a refusal, whose form is OpenAI's."""
        text: str = json.loads(self.content)["error"]["message"]
        return text

    @property
    def text(self) -> str:
        """The answer, also of a stream."""
        if not self.content.startswith(b"data: "):
            text: str = json.loads(self.content)["choices"][0]["message"]["content"]
            return text
        chunks = self.content.decode().removesuffix("\n\n").split("\n\n")
        assert chunks.pop() == "data: [DONE]"
        deltas = [json.loads(c.removeprefix("data: "))["choices"][0]["delta"] for c in chunks]
        return "".join(delta.get("content", "") for delta in deltas)


def with_app(learner: Learner, use: Callable[[Any], Awaitable[None]], queue: int = 64) -> None:
    """Runs `use` over an application, whose model's thread runs."""

    async def run() -> None:
        app = create_app(learner, queue_size=queue)
        async with app.router.lifespan_context(app):
            await asyncio.wait_for(use(app), 60)

    asyncio.run(run())


# -- a request is refused before it reaches the model


def test_of_24_requests_those_that_can_be_are_answered_as_alone(
    learner: Learner, caplog: pytest.LogCaptureFixture
) -> None:
    prompts = ["ab", "hello", "a b c", "xyz", "12345", "zz", "the end"]
    alone = {prompt: learner.generate([prompt])[0] for prompt in prompts}
    assert len(set(alone.values())) > 3
    good = [(prompt, {"stream": stream}) for prompt in prompts for stream in (False, True)]
    refused = [
        ({"messages": SYSTEM}, "System role not supported"),
        ({"messages": SYSTEM, "stream": True}, "System role not supported"),
        (body("a" * (WINDOW - 20)), "do not fit in the 128 positions of the model; shorten the"),
        (b'{"messages": [', "request: not JSON"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "request: not JSON"),
        (body("a" * 1_000_000), "request: its messages have 1000000 characters, but at most 65536"),
        (body("a" * 1_000_000, stream=True), "at most 65536 are read; shorten them"),
        (body("a", tools=[{}]), "field 'tools'"),
    ]
    left = [body("ab", stream=stream) for stream in (False, True)]
    assert len(good) + len(refused) + len(left) == 24

    async def use(app: Any) -> None:
        leaving = [Asked(app, sent) for sent in left]
        bad = [Asked(app, sent) for sent, _ in refused]
        asked = [Asked(app, body(prompt, **more)) for prompt, more in good]
        await asyncio.sleep(0)
        for one in leaving:
            one.leave.set()
        await asyncio.wait([one.done for one in (*leaving, *bad, *asked)])
        assert [one.status for one in asked] == [200] * len(asked)
        assert [one.text for one in asked] == [alone[prompt] for prompt, _ in good]
        assert [one.status for one in bad] == [400] * len(bad)
        for one, (_, says) in zip(bad, refused, strict=True):
            assert says in one.error

    with_app(learner, use)
    assert not caplog.records


def test_a_prompt_and_its_answer_fit_in_the_window(learner: Learner, client: TestClient) -> None:
    head = len("[user][assistant]")
    longest = "a" * (WINDOW - head - LIMIT)
    assert client.post(CHAT, json=body(longest)).status_code == 200
    over = client.post(CHAT, json=body(longest + "aa")).json()["error"]["message"]
    assert over == (
        f"request: {WINDOW - LIMIT + 2} prompt tokens and {LIMIT} answer tokens do not fit in the "
        f"{WINDOW} positions of the model; shorten the messages, or set max_tokens to {LIMIT - 2} "
        "or less"
    )
    assert client.post(CHAT, json=body(longest + "aa", max_tokens=LIMIT - 2)).status_code == 200
    full = client.post(CHAT, json=body("a" * WINDOW, max_tokens=1)).json()["error"]["message"]
    assert full.endswith("positions of the model; shorten the messages")


def test_a_batch_is_of_requests_that_fit_together(learner: Learner) -> None:
    long, short = "a" * (WINDOW - 20), "ab"  # with 2 and 12 tokens of answer
    expected = learner.generate([short])[0]
    sizes: list[int] = []

    async def use(app: Any) -> None:
        answers = app.state.batcher._learned.answers

        def counted(examples: list[Example], *more: Any) -> list[Answer]:
            sizes.append(len(examples))
            found: list[Answer] = answers(examples, *more)
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(learner, "answers", counted)
            asked = [Asked(app, body(long, max_tokens=2)) for _ in range(2)]
            asked += [Asked(app, body(short)) for _ in range(2)]
            await asyncio.wait([one.done for one in asked])
        assert [one.status for one in asked] == [200] * 4
        assert [one.text for one in asked[2:]] == [expected] * 2

    with_app(learner, use)
    assert sum(sizes) == 4
    assert max(sizes) <= 2


def test_a_prompt_without_tokens_is_refused(
    learner: Learner, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Texts, "_ids", lambda *_, **__: [])
    response = client.post(CHAT, json=body("a"))
    assert response.status_code == 400
    assert "makes no tokens of it; give it another text" in response.json()["error"]["message"]


class Panic(BaseException):
    """As a library in Rust raises."""


@pytest.mark.parametrize("error", [ZeroDivisionError("by zero"), RecursionError(), Panic("index")])
def test_whatever_fails_in_a_prompt_is_its_own(
    error: BaseException,
    learner: Learner,
    client: TestClient,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    encode = learner.backbone.encode

    def failing(_: Any, example: Example, **options: Any) -> Any:
        if example.prompt == "fail":
            raise error
        return encode(example, **options)

    monkeypatch.setattr(type(learner.backbone), "encode", failing)
    for stream in (False, True):
        response = client.post(CHAT, json=body("fail", stream=stream))
        assert response.status_code == 400
        reason = str(error) or "RecursionError()"
        message = response.json()["error"]["message"]
        assert message == (
            f"request: its prompt could not be encoded ({reason}); change the messages"
        )
        assert client.post(CHAT, json=body("ab")).status_code == 200
    assert [record.exc_info for record in caplog.records] == [None, None]


def test_long_prompts_wait_for_long_ones_only(learner: Learner) -> None:
    expected = learner.generate(["ab"])[0]
    begun, free = threading.Event(), threading.Event()
    encode = learner.backbone.encode

    def slow(example: Example, **options: Any) -> Any:
        if len(example.prompt) > 5000:
            begun.set()
            assert free.wait(30)
        return encode(example, **options)

    async def use(app: Any) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(learner.backbone), "encode", lambda _, *a, **k: slow(*a, **k))
            held = [Asked(app, body("a" * 6000, max_tokens=1)) for _ in range(2)]
            await asyncio.to_thread(begun.wait, 30)
            too_many = Asked(app, body("a" * 6000))
            short = Asked(app, body("ab"))
            await asyncio.wait([short.done, too_many.done])
            assert short.text == expected
            assert too_many.status == 429
            assert too_many.headers[b"retry-after"] == b"1"
            free.set()
            await asyncio.wait([one.done for one in held])
        assert "do not fit in the" in held[0].error  # it has 512 tokens, without its middle

    with_app(learner, use, queue=2)


def test_messages_are_counted(client: TestClient) -> None:
    turns = [{"role": "user", "content": "a"}] * 1001
    response = client.post(CHAT, json={"messages": turns})
    assert response.status_code == 400
    assert "it has 1001 messages, but at most 1000 are read" in response.json()["error"]["message"]


def test_a_body_must_arrive_in_time(
    learner: Learner, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("retain.serve.app.BODY_SECONDS", 0.05)

    async def use(app: Any) -> None:
        late = Asked(app, b'{"messages": ', whole=False)
        left = Asked(app, b'{"messages": ', whole=False)
        left.leave.set()
        await asyncio.wait([late.done, left.done])
        assert late.status == 408
        assert late.headers[b"connection"] == b"close"
        assert "its body did not arrive in" in late.error
        assert left.done.exception() is None

    with_app(learner, use)
    assert not caplog.records


# -- a batch fails all the same


@pytest.mark.parametrize("stop", [None, "middle"])
def test_a_batch_that_fails_fails_for_one_only(
    stop: str | None,
    learner: Learner,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    prompts = ["ab", "hello", "fail", "xyz"]
    outputs = {prompt: learner.generate([prompt])[0] for prompt in prompts}
    more: dict[str, Any] = {}
    if stop:  # an answer that has ended when its batch fails is told all the same
        more["stop"] = [outputs["hello"][2:4]]
        outputs = {prompt: text.partition(more["stop"][0])[0] for prompt, text in outputs.items()}
    answers = learner.answers
    sizes: list[int] = []
    busy, free = threading.Event(), threading.Event()

    def failing(examples: list[Example], *rest: Any) -> list[Answer]:
        sizes.append(len(examples))
        busy.set()
        assert free.wait(30)
        found = answers(examples, *rest)  # the pieces of its answers are sent
        if any(example.prompt == "fail" for example in examples):
            raise ValueError("no such row")
        return found

    monkeypatch.setattr(learner, "answers", failing)

    async def use(app: Any) -> None:
        first = Asked(app, body("ab", max_tokens=1))
        await asyncio.to_thread(busy.wait, 30)
        asked = []
        for i, prompt in enumerate([*prompts, "fail"]):
            asked.append(Asked(app, body(prompt, stream=i % 2 == 1 or i == 4, **more)))
            while len(app.state.batcher.waiting) <= i:  # a batch is made in the order of arrival
                await asyncio.sleep(0.01)
        streamed = asked.pop()
        free.set()
        await asyncio.wait([one.done for one in (first, *asked, streamed)])
        bad = asked.pop(2)
        assert [one.status for one in asked] == [200] * 3
        assert [one.text for one in asked] == [outputs[p] for p in prompts if p != "fail"]
        assert (bad.status, bad.error[:29]) == (500, "the model failed on this requ")
        *_, error, done, rest = streamed.content.decode().split("\n\n")
        assert (done, rest) == ("data: [DONE]", "")
        assert json.loads(error.removeprefix("data: "))["error"]["type"] == "server_error"

    with_app(learner, use)
    assert sizes == [1, 4, 2, 2, 1, 1, 1]  # the first, a batch, its halves, their halves, the last
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert [level for level, _ in said] == ["WARNING", "WARNING", "ERROR", "ERROR"]
    assert said[0][1] == "a batch of 4 failed (ValueError('no such row')); answers its halves"


# -- fields


@pytest.mark.parametrize(
    ("field", "nothing", "something"),
    [
        ("logprobs", [False, None], [True]),
        ("top_logprobs", [0, None], [2]),
        ("tools", [[], None], [[{"type": "function", "function": {"name": "f"}}]]),
        ("tool_choice", ["none", "auto", None], ["required", {"type": "function"}]),
        ("parallel_tool_calls", [True, False, None], ["x"]),
        ("functions", [[], None], [[{"name": "f"}]]),
        ("function_call", ["none", "auto", None], [{"name": "f"}]),
        ("response_format", [{"type": "text"}, None], [{"type": "json_object"}, "text"]),
        ("logit_bias", [{}, None], [{"1": 5}]),
        ("modalities", [["text"], None], [["text", "audio"]]),
        ("audio", [None], [{"voice": "a"}]),
        ("store", [False, None], [True]),
        ("service_tier", ["auto", "default", None], ["flex"]),
        ("reasoning_effort", ["none", None], ["high"]),
        ("verbosity", ["medium", None], ["low"]),
        ("n", [1, None], [2, 0]),
        ("stop", [[], None], [[""]]),
        ("metadata", [{}, {"a": "b"}, None], ["x"]),
        ("stream_options", [{}, {"include_usage": False}, None], ["x"]),
        ("user", ["u", None], [1]),
        ("seed", [1, None], ["x"]),
        ("temperature", [0, 1.0, None], ["x"]),
        ("top_p", [1, None], ["x"]),
        ("presence_penalty", [0, None], ["x"]),
        ("frequency_penalty", [0, None], ["x"]),
    ],
)
def test_fields_that_ask_for_nothing_are_taken(
    field: str, nothing: list[Any], something: list[Any], client: TestClient
) -> None:
    plain = client.post(CHAT, json=body("ab", max_tokens=2)).json()["choices"]
    for value in nothing:
        response = client.post(CHAT, json=body("ab", max_tokens=2, **{field: value}))
        assert response.status_code == 200, response.text
        assert response.json()["choices"] == plain
    for value in something:
        response = client.post(CHAT, json=body("ab", **{field: value}))
        assert response.status_code == 400, value
        message = response.json()["error"]["message"]
        assert f"field '{field}" in message
        assert "\n" not in message


def test_a_turn_of_the_assistant_may_be_empty(client: TestClient) -> None:
    def asked(turn: dict[str, Any]) -> Any:
        turns = [{"role": "user", "content": "a"}, turn, {"role": "user", "content": "b"}]
        return client.post(CHAT, json={"messages": turns, "max_tokens": 2}).json()

    empty = asked({"role": "assistant", "content": ""})["usage"]
    for more in ({}, {"refusal": None}, {"tool_calls": []}, {"audio": None, "name": "x"}):
        assert asked({"role": "assistant", "content": None, **more})["usage"] == empty
    called = asked({"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]})
    assert "field 'messages.1': it has tool_calls instead of a text" in called["error"]["message"]
    for role in ("user", "developer"):
        error = asked({"role": role, "content": None})["error"]["message"]
        assert "field 'messages.1.content'" in error


def test_one_model_is_shown(client: TestClient) -> None:
    listed = client.get("/v1/models").json()["data"]
    assert [client.get("/v1/models/run").json()] == listed
    for name in ("other", "run/other"):
        response = client.get(f"/v1/models/{name}")
        assert response.status_code == 404
        assert response.json()["error"]["message"].startswith("field 'model': only 'run' is served")


# -- connections


HEADERS = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def request_of(sent: dict[str, Any], more: str = "Connection: close\r\n") -> bytes:
    content = json.dumps(sent).encode()
    return f"{HEADERS}{more}Content-Length: {len(content)}\r\n\r\n".encode() + content


class Place:
    """A server in this process, and its clients."""

    def __init__(self, server: Server, port: int) -> None:
        self.server = server
        self.port = port
        self._open: list[asyncio.StreamWriter] = []

    async def connect(self, sent: bytes) -> asyncio.StreamReader:
        """What comes back for what is sent; the connection stays open."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(sent)
        self._open.append(writer)
        return reader

    async def ask(self, sent: dict[str, Any]) -> tuple[int, str]:
        """The status and body of a response."""
        return parsed(await (await self.connect(request_of(sent))).read())

    def close(self) -> None:
        for writer in self._open:
            writer.transport.abort()


def parsed(response: bytes) -> tuple[int, str]:
    head, _, content = response.decode().partition("\r\n\r\n")
    if "transfer-encoding: chunked" in head.lower():
        content = "".join(content.split("\r\n")[1::2])
    return int(head.split()[1]), content


def with_server(learner: Learner, use: Callable[[Place], Awaitable[None]]) -> None:
    """Runs `use` over a server."""

    async def run() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            ready = asyncio.Event()
            server = Server(create_app(learner), ready.set)
            serving = asyncio.create_task(server.serve([listening]))
            await ready.wait()
            place = Place(server, listening.getsockname()[1])
            try:
                await asyncio.wait_for(use(place), 60)
            finally:
                server.should_exit = True
                place.close()
                await asyncio.wait_for(serving, 60)

    asyncio.run(run())


SILENT = {
    "nothing": b"",
    "headers": HEADERS.encode(),
    "body": f"{HEADERS}Content-Length: 100\r\n\r\n{{".encode(),
    "chunks": f"{HEADERS}Transfer-Encoding: chunked\r\n\r\n5\r\n{{".encode(),
    "refused": b"POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n",
    "answered": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


@pytest.mark.parametrize("said", SILENT)
def test_who_says_nothing_makes_room(
    said: str, learner: Learner, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("retain.serve.server.MOST_CONNECTIONS", 10)
    monkeypatch.setattr("retain.serve.connections.UNDISTURBED", 0.1)
    expected = learner.generate(["ab"])[0]

    async def use(place: Place) -> None:
        for _ in range(40):
            await place.connect(SILENT[said])
        for stream in (False, True):
            status, content = await asyncio.wait_for(place.ask(body("ab", stream=stream)), 20)
            assert status == 200
            if not stream:
                assert json.loads(content)["choices"][0]["message"]["content"] == expected
        assert len(place.server.server_state.connections) <= 10

    with_server(learner, use)
    assert not caplog.records


def test_many_good_clients_at_once_wait(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retain.serve.server.MOST_CONNECTIONS", 8)

    async def use(place: Place) -> None:
        asked = [place.ask(body("ab", max_tokens=2)) for _ in range(40)]
        statuses = [status for status, _ in await asyncio.gather(*asked)]
        assert statuses == [200] * 40

    with_server(learner, use)


def test_headers_must_arrive_in_time(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retain.serve.connections.HEADER_SECONDS", 0.2)

    async def use(place: Place) -> None:
        slow = [await place.connect(SILENT[said]) for said in ("nothing", "headers", "refused")]
        for reader in slow:
            with suppress(ConnectionResetError):
                await asyncio.wait_for(reader.read(), 20)  # it ends
        # A request that takes longer is not cut, and a connection may ask again.
        kept = await place.connect(request_of(body("ab"), ""))
        head = await kept.readuntil(b"\r\n\r\n")
        assert b" 200 " in head
        while place.server.server_state.connections:
            await asyncio.sleep(0.02)

    with_server(learner, use)


def test_without_descriptors_the_server_goes_on(
    learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use(place: Place) -> None:
        loop = asyncio.get_running_loop()
        accept = loop.sock_accept
        failures = iter([OSError(24, "Too many open files")] * 3)

        async def failing(listening: socket.socket) -> Any:
            for error in failures:
                raise error
            return await accept(listening)

        monkeypatch.setattr(loop, "sock_accept", failing)
        assert (await place.ask(body("ab", max_tokens=1)))[0] == 200
        assert (await place.ask(body("ab", max_tokens=1)))[0] == 200
        assert next(failures, None) is None

    with_server(learner, use)


# -- signals


@pytest.fixture
def _hears_hangups() -> Iterator[None]:
    """SIGHUP as a terminal's program has it: under nohup it is ignored, which a server respects."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("_hears_hangups")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_answers_in_their_form(
    number: signal.Signals,
    learner: Learner,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("retain.serve.server.PATIENCE", 0.5)
    answers = learner.answers
    busy = threading.Event()

    def endless(examples: list[Example], task: Any, replies: Any, encoded: Any) -> list[Answer]:
        while not all(reply.cancelled for reply in replies):
            busy.set()
            busy.wait(0.01)
        return answers(examples, task, replies, encoded)

    monkeypatch.setattr(learner, "answers", endless)
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]

    async def use(place: Place) -> None:
        asked = [
            asyncio.create_task(place.ask(body("ab", stream=i % 2 == 1))) for i in range(6)
        ]  # one is answered, the others wait
        await asyncio.to_thread(busy.wait, 30)
        idle = [await place.connect(SILENT[said]) for said in ("nothing", "headers", "body")]
        while len(place.server.server_state.connections) < 9:
            await asyncio.sleep(0.01)
        began = asyncio.get_running_loop().time()
        os.kill(os.getpid(), number)
        found = await asyncio.gather(*asked)
        assert 0.5 < asyncio.get_running_loop().time() - began < 10
        for i, (status, content) in enumerate(found):
            if i % 2 == 1:
                assert status == 200
                *_, error, done, rest = content.split("\n\n")
                assert (done, rest) == ("data: [DONE]", "")
                content = error.removeprefix("data: ")
            else:
                assert status == 503
            told = json.loads(content)["error"]
            assert told["message"] == (
                "the server ends before this request is answered; ask again later"
            )
            assert told["type"] == "server_error"
        for reader in idle:
            with suppress(ConnectionResetError):
                await asyncio.wait_for(reader.read(), 20)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", place.port)

    with_server(learner, use)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    after = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
    assert after == handlers


def test_what_was_begun_is_answered_after_a_signal(learner: Learner) -> None:
    expected = learner.generate(["ab"])[0]

    async def use(place: Place) -> None:
        asked = [asyncio.create_task(place.ask(body("ab"))) for _ in range(6)]
        while len(place.server.server_state.tasks) < 6:
            await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGTERM)
        for status, content in await asyncio.gather(*asked):
            assert status == 200
            assert json.loads(content)["choices"][0]["message"]["content"] == expected

    with_server(learner, use)


def test_a_second_signal_ends_it_sooner(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retain.serve.server.PATIENCE", 30)
    answers = learner.answers
    busy = threading.Event()

    def endless(examples: list[Example], task: Any, replies: Any, encoded: Any) -> list[Answer]:
        busy.set()
        while not all(reply.cancelled for reply in replies):
            threading.Event().wait(0.01)
        return answers(examples, task, replies, encoded)

    monkeypatch.setattr(learner, "answers", endless)

    async def use(place: Place) -> None:
        asked = asyncio.create_task(place.ask(body("ab")))
        await asyncio.to_thread(busy.wait, 30)
        began = asyncio.get_running_loop().time()
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(0.3)
        assert (await asked)[0] == 503
        assert asyncio.get_running_loop().time() - began < 15

    with_server(learner, use)


def test_nohup_is_heard(learner: Learner) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)

    async def use(place: Place) -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.sleep(0.2)
        assert (await place.ask(body("ab", max_tokens=1)))[0] == 200

    try:
        with_server(learner, use)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_is_no_http_is_refused_in_the_protocols_shape(learner: Learner) -> None:
    async def use(place: Place) -> None:
        reader = await place.connect(b"what is this?\r\n\r\n")
        head, _, content = (await asyncio.wait_for(reader.read(), 20)).partition(b"\r\n\r\n")
        assert b" 400 " in head.split(b"\r\n")[0]
        assert "request: " in json.loads(content)["error"]["message"]

    with_server(learner, use)


def test_a_body_over_the_limit_is_refused_while_it_comes(learner: Learner) -> None:
    async def use(place: Place) -> None:
        head = f"{HEADERS}Connection: close\r\nContent-Length: {4 * MAX_BODY}\r\n\r\n".encode()
        reader = await place.connect(head + b"a" * (MAX_BODY + 1))
        assert b" 413 " in await asyncio.wait_for(reader.readuntil(b"\r\n"), 20)

    with_server(learner, use)
