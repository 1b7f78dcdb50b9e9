"""Over HTTP come the answers of `retain generate`, whoever asks, in whatever company."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from retain.backbone import Backbone
from retain.evaluation.streaming import Reply
from retain.learner.learned_model import Answer
from retain.learner.learner import Learner
from retain.serve.app import MAX_BODY, create_app
from retain.serve.batcher import Batcher, Job
from retain.tasks import Example
from retain.testing.tiny import make_backbone, make_learner, make_task, prompts_of, save_backbone
from tests.command import call

TASKS = (make_task("copy"), make_task("letter"))
PROMPTS = prompts_of(*TASKS)
CHAT = "/v1/chat/completions"


def learned(variant: str, backbone: Backbone | Path, folder: Path) -> Learner:
    learner = make_learner(variant, backbone, folder)
    for task in TASKS:
        learner.learn(task)
    return learner


@pytest.fixture(scope="module")
def sapt(tmp_path_factory: pytest.TempPathFactory) -> Learner:
    return learned("sapt", make_backbone("llama"), tmp_path_factory.mktemp("sapt") / "run")


@pytest.fixture(scope="module")
def pertask(tmp_path_factory: pytest.TempPathFactory) -> Learner:
    return learned("pertask", make_backbone("t5"), tmp_path_factory.mktemp("pertask") / "run")


def let_answer(sapt: Learner, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets answers be so long."""
    evaluation = sapt.experiment.evaluation.model_copy(update={"max_new_tokens": tokens})
    changed = sapt.experiment.model_copy(update={"evaluation": evaluation})
    monkeypatch.setattr(sapt, "experiment", changed)


@pytest.fixture
def client(sapt: Learner) -> Iterator[TestClient]:
    with TestClient(create_app(sapt)) as client:
        yield client


def body(prompt: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": prompt}], **more}


def events(text: str) -> list[Any]:
    parts = text.split("\n\n")
    assert parts.pop() == ""
    assert parts.pop() == "data: [DONE]"
    return [json.loads(part.removeprefix("data: ")) for part in parts]


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def job_of(learner: Learner, prompt: str, limit: int, stream: bool) -> Job:
    example = Example(prompt, ("",))
    encoded = learner.backbone.encode(example, with_answer=False)
    return Job(example, encoded, None, limit, stream)


class Held:
    """The model's thread stands still at its first batch, until everybody else waits."""

    def __init__(self, learner: Learner, patch: pytest.MonkeyPatch) -> None:
        self.batches: list[int] = []
        self.busy, self.free = threading.Event(), threading.Event()
        answers = learner.answers

        def held(examples: list[Example], *more: Any) -> list[Answer]:
            self.batches.append(len(examples))
            self.busy.set()
            assert self.free.wait(30)
            return answers(examples, *more)

        patch.setattr(learner, "answers", held)


def asked_together(
    client: TestClient, held: Held, requests: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Responses to requests of which all but the first wait while that one is answered."""
    app: Any = client.app
    with ThreadPoolExecutor(len(requests)) as pool:
        futures = [pool.submit(client.post, CHAT, json=requests[0])]
        assert held.busy.wait(30)
        futures += [pool.submit(client.post, CHAT, json=request) for request in requests[1:]]
        until(lambda: len(app.state.batcher.waiting) == len(requests) - 1)
        held.free.set()
        responses = [future.result() for future in futures]
    assert [response.status_code for response in responses] == [200] * len(requests)
    return [response.json() for response in responses]


# -- the same answers


def test_answers_of_a_batch_are_those_of_generate(
    sapt: Learner, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [sapt.answers([prompt])[0] for prompt in PROMPTS]
    assert len({answer.output for answer in expected}) > 3
    assert len({round(answer.routing["copy"], 3) for answer in expected}) > 3
    held = Held(sapt, monkeypatch)
    found = asked_together(client, held, [body(prompt, routing=True) for prompt in PROMPTS])
    assert held.batches == [1, 3, 3, 1]  # what waited, at most evaluation.batch_size at once
    for response, answer in zip(found, expected, strict=True):
        assert response["choices"][0]["message"]["content"] == answer.output
        assert response["routing"] == pytest.approx(answer.routing, abs=1e-5)


def test_a_stream_tells_the_answer_piece_by_piece(sapt: Learner, client: TestClient) -> None:
    expected = sapt.answers(PROMPTS)
    for answer in expected:
        asked = body(answer.prompt, stream=True, routing=True)
        asked["stream_options"] = {"include_usage": True}
        response = client.post(CHAT, json=asked)
        assert response.headers["content-type"].startswith("text/event-stream")
        *chunks, usage = events(response.text)
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
        assert deltas[0] == {"role": "assistant", "content": ""}
        assert "".join(delta.get("content", "") for delta in deltas) == answer.output
        assert len(deltas) > 3 or len(answer.output) < 2
        assert deltas[-1] == {}
        assert chunks[-1]["routing"] == pytest.approx(answer.routing, abs=1e-5)
        whole = client.post(CHAT, json=body(answer.prompt)).json()
        assert chunks[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
        assert usage["usage"] == whole["usage"]
        assert usage["choices"] == []


def test_tokens_are_counted_and_bounded(sapt: Learner, client: TestClient) -> None:
    limit = sapt.experiment.evaluation.max_new_tokens
    answer = next(a for a in sapt.answers(PROMPTS) if len(a.output) == limit)
    whole = client.post(CHAT, json=body(answer.prompt, max_tokens=999)).json()
    assert whole["choices"][0]["finish_reason"] == "length"
    assert whole["usage"]["completion_tokens"] == limit
    assert whole["usage"]["prompt_tokens"] == len(answer.prompt)  # a token a character
    short = client.post(CHAT, json=body(answer.prompt, max_tokens=2)).json()
    assert short["choices"][0]["message"]["content"] == answer.output[:2].strip()
    assert short["usage"]["completion_tokens"] == 2


def test_answers_may_be_as_long_as_those_of_any_task(
    sapt: Learner, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    longer = sapt.experiment.evaluation.max_new_tokens + 3
    tasks = [replace(sapt.tasks[0], max_new_tokens=longer), *sapt.tasks[1:]]
    monkeypatch.setattr(sapt, "tasks", tasks)
    prompt = next(a.prompt for a in sapt.answers(PROMPTS) if len(a.output) == longer)
    for asked in (body(prompt), body(prompt, max_tokens=999)):
        whole = client.post(CHAT, json=asked).json()
        assert whole["usage"]["completion_tokens"] == longer


def test_a_method_that_needs_the_task_is_told_it(
    pertask: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [task.name for task in TASKS]
    requests = [body(prompt, task=name) for prompt in PROMPTS[:3] for name in names]
    expected = [pertask.generate([prompt], name)[0] for prompt in PROMPTS[:3] for name in names]
    assert expected[::2] != expected[1::2]
    held = Held(pertask, monkeypatch)
    with TestClient(create_app(pertask)) as client:
        listed = client.get("/v1/models").json()["data"]
        assert [(m["id"], m["tasks"], m["needs_task"]) for m in listed] == [("run", names, True)]
        found = asked_together(client, held, requests)
    assert [r["choices"][0]["message"]["content"] for r in found] == expected
    assert sorted(held.batches) == [1, 2, 3]  # a batch is of one task


def test_a_conversation_is_read_as_in_training(sapt: Learner, client: TestClient) -> None:
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "yes?"},
        {"role": "user", "content": PROMPTS[0], "name": "somebody"},
    ]
    whole = client.post(CHAT, json={"messages": messages, "routing": True}).json()
    read = f"be brief\nhello\nyes?\n{PROMPTS[0]}"  # this backbone has no template
    assert whole["usage"]["prompt_tokens"] == len(read)
    # It is routed by the user's words alone.
    heard = sapt.answers([f"hello\n{PROMPTS[0]}"])[0]
    assert whole["routing"] == pytest.approx(heard.routing, abs=1e-5)
    assert whole["routing"] != pytest.approx(sapt.answers([read])[0].routing, abs=1e-5)


def test_parts_of_text_and_developers_are_read(client: TestClient) -> None:
    plain = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "a\nb"}]
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b", "cache_control": {}}]
    other = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}]
    expected, found = (
        client.post(CHAT, json={"messages": messages, "routing": True}).json()
        for messages in (plain, other)
    )
    for field in ("choices", "usage", "routing"):
        assert found[field] == expected[field]


def stopped(client: TestClient, prompt: str, stop: str | list[str]) -> tuple[str, str]:
    """The text and its finish reason, the same whole and as a stream."""
    whole = client.post(CHAT, json=body(prompt, stop=stop)).json()["choices"][0]
    chunks = events(client.post(CHAT, json=body(prompt, stop=stop, stream=True)).text)
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == whole["message"]["content"]
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["finish_reason"]
    return text, whole["finish_reason"]


def test_an_answer_is_cut_at_a_stop(sapt: Learner, client: TestClient) -> None:
    answers = sapt.answers(PROMPTS)
    output, prompt = max((len(set(a.output)), a.output, a.prompt) for a in answers)[1:]
    assert len(output) > 4
    middle = output[2:4]
    before = output.partition(middle)[0]
    assert stopped(client, prompt, middle) == (before, "stop")
    assert stopped(client, prompt, [output[-1] + "?", middle]) == (before, "stop")
    assert stopped(client, prompt, [output[1:], output[2]]) == (
        output.partition(output[2])[0],
        "stop",
    )
    whole = client.post(CHAT, json=body(prompt)).json()["choices"][0]["finish_reason"]
    for never in ([], output[-2:] + "?", [output + "?", "never"]):
        assert stopped(client, prompt, never) == (output, whole)


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_ends_the_answer_early(
    stream: bool, sapt: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_answer(sapt, 300, monkeypatch)
    whole = max(sapt.answers(PROMPTS[-2:]), key=lambda answer: len(answer.output))
    asked = body(whole.prompt, stop=whole.output[0], stream=stream)
    asked["stream_options"] = {"include_usage": True}
    with TestClient(create_app(sapt)) as client:
        response = client.post(CHAT, json=asked)
    usage = (events(response.text)[-1] if stream else response.json())["usage"]
    assert 1 <= usage["completion_tokens"] < len(whole.output)


def test_a_chat_template_is_written_as_for_generate(tmp_path: Path) -> None:
    folder = save_backbone("llama", tmp_path / "backbone")
    template = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}[a]"
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    learner = Learner(
        folder,
        {"name": "seqlora", "rank": 2},
        tmp_path / "run",
        training={"max_steps": 1},
        evaluation={"max_new_tokens": 5},
        prompt={"chat_template": True},
    )
    learner.learn(TASKS[0])
    with TestClient(create_app(learner)) as client:
        for prompt in PROMPTS[:3]:
            whole = client.post(CHAT, json=body(prompt)).json()
            assert whole["choices"][0]["message"]["content"] == learner.generate([prompt])[0]
            assert whole["usage"]["prompt_tokens"] == len(f"[user]{prompt}[a]")


# -- refusals


@pytest.mark.parametrize(
    ("content", "status", "says"),
    [
        (b"{", 400, "request: not JSON"),
        (b'{"messages": "\xff"}', 400, "request: not JSON"),
        (b"[" * 5000, 400, "request: not JSON"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', 400, "request: not JSON"),
        (b"[]", 400, "request: field ''"),
        ({}, 400, "field 'messages': Field required; add it"),
        ({"messages": []}, 400, "the last of 'messages' must be a non-empty text with role 'user'"),
        (body(" "), 400, "the last of 'messages' must be a non-empty text with role 'user'"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, 400, "the last of 'messages'"),
        ({"messages": [{"role": "tool", "content": "a"}]}, 400, "field 'messages.0.role'"),
        ({"messages": [{"role": "user", "content": [{}]}]}, 400, "field 'messages.0.content'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            400,
            "part 0 has type 'image_url', but only 'text' is supported; remove it",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]},
            400,
            "field 'messages.0.content': part 0 has no field 'text' with a string; add it",
        ),
        (body("a", stop=""), 400, "field 'stop.0'"),
        (body("a", stop=[*"abcde"]), 400, "field 'stop'"),
        (body("a", top_k=2), 400, "unknown field 'top_k'; remove it or use one of: messages,"),
        (body("a", tools=[{}]), 400, "field 'tools': only [] is supported (got [{}]); remove it"),
        (body("a", n=2), 400, "field 'n'"),
        (body("a", max_tokens=0), 400, "field 'max_tokens'"),
        (body("a", max_tokens=True), 400, "field 'max_tokens': expected a number"),
        (body("a", n=True), 400, "field 'n': expected a number"),
        (body("a", task="other"), 400, "field 'task': no task 'other'; name one of copy, letter"),
        (
            b'{"messages": [], "messages": [{"role": "user", "content": "a"}]}',
            400,
            "request: not JSON (the key 'messages' is there twice)",
        ),
        (body("a", model="gpt-4"), 404, "field 'model': only 'run' is served here"),
        (body("a" * MAX_BODY), 413, "request: longer than 1048576 bytes; shorten it"),
    ],
)
def test_what_is_wrong_is_said(
    client: TestClient, content: bytes | dict[str, Any], status: int, says: str
) -> None:
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    response = client.post(CHAT, content=raw, headers={"Content-Type": "application/json"})
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert says in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("method", "path", "more", "status", "says"),
    [
        # A form of a foreign page could send it.
        ("POST", CHAT, {"Content-Type": "text/plain"}, 415, "must be application/json"),
        ("POST", CHAT, {"Content-Encoding": "gzip"}, 415, "its body is in gzip; send it uncom"),
        ("GET", CHAT, {}, 405, f"no GET {CHAT} here; send POST {CHAT}, or GET /v1/models"),
        ("OPTIONS", CHAT, {}, 405, f"no OPTIONS {CHAT} here; send POST {CHAT}"),
        ("POST", "/v1/models", {}, 405, "no POST /v1/models here"),
        ("POST", "/v1/completions", {}, 404, f"no POST /v1/completions here; send POST {CHAT}"),
        # No redirect: it would name a scheme and host that a proxy has changed.
        ("POST", f"{CHAT}/", {}, 404, f"no POST {CHAT}/ here; send POST {CHAT}"),
    ],
)
def test_other_requests_are_refused(
    client: TestClient, method: str, path: str, more: dict[str, str], status: int, says: str
) -> None:
    content, headers = json.dumps(body("a")).encode(), {"Content-Type": "application/json", **more}
    response = client.request(method, path, content=content, headers=headers)
    assert response.status_code == status
    assert says in response.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/", "/v1/models", "/v1/models/run"])
def test_proxies_look_without_reading(path: str, client: TestClient) -> None:
    looked, read = client.head(path), client.get(path)
    assert (looked.status_code, looked.content) == (200, b"")
    assert looked.headers["content-type"] == read.headers["content-type"]


def test_a_byte_order_mark_is_no_part_of_json(client: TestClient) -> None:
    content, headers = json.dumps(body("a")), {"Content-Type": "application/json"}
    answers = [
        client.post(CHAT, content=content.encode(codec), headers=headers).json()["choices"]
        for codec in ("utf-8", "utf-8-sig")
    ]
    assert answers[0] == answers[1]


def test_sampling_settings_and_nulls_change_nothing(client: TestClient) -> None:
    usual = {"temperature": 0.7, "top_p": 0.9, "seed": 1, "stop": None, "max_tokens": None}
    plain, sent = (client.post(CHAT, json=body(PROMPTS[0], **more)) for more in ({}, usual))
    assert sent.json()["choices"] == plain.json()["choices"]


def test_a_task_that_is_not_there_is_refused(client: TestClient) -> None:
    """Also where the router chooses, which would answer as if nothing was said."""
    response = client.post(CHAT, json={**body("a"), "task": "other"})
    assert response.status_code == 400
    message = response.json()["error"]["message"]
    assert message.startswith("field 'task': no task 'other'; name one of copy, letter")


@pytest.mark.parametrize("field", ["max_tokens", "n", "seed"])
def test_a_truth_value_is_no_number(field: str, client: TestClient) -> None:
    response = client.post(CHAT, json={**body("a"), field: True})
    assert response.status_code == 400
    assert f"field '{field}'" in response.json()["error"]["message"]


@pytest.mark.parametrize("task", [None, "other"])
def test_without_its_task_a_method_is_not_asked(pertask: Learner, task: str | None) -> None:
    with TestClient(create_app(pertask)) as client:
        response = client.post(CHAT, json=body("a", task=task))
    assert response.status_code == 400
    message = response.json()["error"]["message"]
    assert message == "field 'task': this method needs the task's name, one of copy, letter"


def test_a_key_is_asked_for(sapt: Learner) -> None:
    with TestClient(create_app(sapt, key="clé-1")) as client:
        for given in ({}, {"Authorization": "Bearer other"}, {"Authorization": "Basic clé-1"}):
            headers = {name: value.encode() for name, value in given.items()}
            for response in (
                client.post(CHAT, json=body("a"), headers=headers),
                client.get("/v1/models", headers=headers),
            ):
                assert response.status_code == 401
                assert "needs its key" in response.json()["error"]["message"]
                assert response.headers["www-authenticate"] == "Bearer"
        right = {"Authorization": "Bearer clé-1".encode()}
        assert client.post(CHAT, json=body("a"), headers=right).status_code == 200
        assert client.get("/").status_code == 200


def test_one_too_many_is_turned_away(sapt: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(sapt, monkeypatch)
    with TestClient(create_app(sapt, queue_size=2)) as client, ThreadPoolExecutor() as pool:
        asked = [pool.submit(client.post, CHAT, json=body("a"))]
        assert held.busy.wait(30)
        asked += [pool.submit(client.post, CHAT, json=body("a")) for _ in range(2)]
        app: Any = client.app
        until(lambda: len(app.state.batcher.waiting) == 2)
        refused = client.post(CHAT, json=body("a"))
        held.free.set()
        assert [future.result().status_code for future in asked] == [200] * 3
        assert client.post(CHAT, json=body("a")).status_code == 200
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "1"
    assert "the queue of 2 requests is full" in refused.json()["error"]["message"]


def test_a_failed_batch_is_told_and_the_next_one_answered(
    sapt: Learner, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sapt.method, "route", lambda *_: 1 / 0)
        failed = client.post(CHAT, json=body("a"))
        stream = client.post(CHAT, json=body("a", stream=True))
    assert failed.status_code == 500
    assert failed.json()["error"]["type"] == "server_error"
    assert '"server_error"' in stream.text
    assert stream.text.endswith("data: [DONE]\n\n")
    assert client.post(CHAT, json=body("a")).status_code == 200


LOCAL = ("localhost:1", "LOCALHOST", "127.0.0.1", "127.0.1.1:8000", "[::1]:8000")
FOREIGN = (
    "elsewhere.example",
    "localhost.example",
    "127.0.0.1.example",
    "my_name",
    "a@localhost",
    "",
)


@pytest.mark.parametrize("host", LOCAL + FOREIGN)
def test_local_servers_answer_to_local_names_only(host: str, sapt: Learner) -> None:
    with TestClient(create_app(sapt, local=True)) as client:
        for path in ("/", "/v1/models"):
            response = client.get(path, headers={"Host": host})
            assert response.status_code == (200 if host in LOCAL else 400)
            if host in FOREIGN:
                message = response.json()["error"]["message"]
                assert f"its Host is '{host}'" in message
                assert "--host" in message


def test_the_page_reaches_its_own_origin_only(client: TestClient) -> None:
    page = client.get("/")
    assert "connect-src 'self'" in page.headers["content-security-policy"]
    assert "//" not in page.text


# -- streaming


def told(tokens: list[int], limit: int | None = None) -> tuple[list[str], Reply]:
    """What a reply tells of UTF-8 bytes, the last of which ends generation."""

    class Bytes:
        end_ids = (0,)

        def decode(self, ids: list[int]) -> str:
            return bytes(i for i in ids if i).decode(errors="replace").replace(" .", ".").strip()

    pieces: list[str] = []
    reply = Reply(pieces.append, limit)
    bytewise: Any = Bytes()
    for i, token in enumerate(tokens):
        if not reply.done:
            reply.add(token, bytewise, last=i == len(tokens) - 1)
    return pieces, reply


@pytest.mark.parametrize(
    "text", [" a b ", "née 任务 🦊!", "so . it  is", "", " ", "\ufffd", "a\n\nb"]
)
@pytest.mark.parametrize("end", [[], [0], [0, 0, 0]])
def test_pieces_make_the_answer(text: str, end: list[int]) -> None:
    pieces, reply = told([*text.encode(), *end])
    assert "".join(pieces) == text.replace(" .", ".").strip()
    assert len(pieces) > 1 or len(text) < 3
    assert reply.ended == bool(end)


def test_a_reply_that_is_left_takes_no_more() -> None:
    pieces, reply = told(list(b"abcdef"), limit=3)
    assert ("".join(pieces), len(reply.tokens), reply.ended) == ("abc", 3, False)
    learner_backbone = make_backbone("llama")
    pieces = []

    def leave(piece: str) -> None:
        pieces.append(piece)
        left.cancelled = True

    left = Reply(leave)
    left.add(5, learner_backbone, last=False)
    left.add(6, learner_backbone, last=False)
    assert left.done
    assert len(pieces) == 1


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_a_reply_that_is_left_ends_generation(kind: str, tmp_path: Path) -> None:
    learner = make_learner("seqlora", make_backbone(kind), tmp_path / "run")
    learner.learn(TASKS[0])
    steps = 0
    forward = learner.backbone.model.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal steps
        steps += 1
        return forward(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learner.backbone.model, "forward", counted)
        replies = [Reply(limit=1), Reply(limit=2)]
        short = learner.answers(PROMPTS[:2], None, replies)
    assert steps == 2
    assert [len(reply.tokens) for reply in replies] == [1, 2]
    whole = learner.generate(PROMPTS[:2])
    assert all(w.startswith(s.output) for w, s in zip(whole, short, strict=True))


def test_clients_in_step_share_a_batch(sapt: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def answers(examples: list[Example], *rest: Any) -> list[Answer]:
        sizes.append(len(examples))
        return Learner.answers(sapt, examples, *rest)

    monkeypatch.setattr(sapt, "answers", answers)
    monkeypatch.setattr("retain.serve.batcher.GATHER", 0.5)
    batcher = Batcher(sapt, 4)

    async def client(late: float) -> None:
        for _ in range(3):
            await asyncio.sleep(late)
            job = job_of(sapt, PROMPTS[0], 2, False)
            batcher.submit(job)
            assert [event async for event in job.events()]

    async def both() -> None:
        clients = asyncio.gather(client(0), client(0.05))
        await asyncio.sleep(0.2)  # both have asked
        batcher.start()
        await clients

    asyncio.run(both())
    batcher.close()
    assert sizes == [2, 2, 2]


def test_who_leaves_a_stream_ends_its_answer(
    sapt: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_answer(sapt, 1500, monkeypatch)
    batcher = Batcher(sapt, 2)
    batcher.start()

    async def leave() -> Reply:
        left, other = (job_of(sapt, PROMPTS[0], n, True) for n in (1500, 1))
        batcher.submit(left)
        events = left.events()
        await anext(events)
        await events.aclose()
        batcher.submit(other)  # is answered when the one before it has ended
        assert [event async for event in other.events()]
        return left.reply

    reply = asyncio.run(leave())
    batcher.close()
    assert not reply.ended
    assert 1 < len(reply.tokens) < 1500


class Client:
    """One request, made of the application as a server makes it; who asks may leave."""

    def __init__(self, app: Any, asked: dict[str, Any]) -> None:
        self.statuses: list[int] = []
        self._content: bytes | None = json.dumps(asked).encode()
        self._left = asyncio.Event()
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "method": "POST",
            "path": CHAT,
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
        }
        self._answered = asyncio.create_task(app(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        content, self._content = self._content, None
        if content is not None:
            return {"type": "http.request", "body": content}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        if "status" in message:
            self.statuses.append(message["status"])

    async def leave(self) -> None:
        """And its request ends."""
        self._left.set()
        await asyncio.wait_for(self._answered, 30)


async def comes(holds: Callable[[], bool]) -> None:
    await asyncio.to_thread(until, holds)


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_a_request_ends_its_answer(
    stream: bool, sapt: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_answer(sapt, 1500, monkeypatch)
    replies: list[Reply] = []
    answers = sapt.answers

    def noted(
        examples: list[Example], task: str | None, growing: list[Reply], *more: Any
    ) -> list[Answer]:
        replies.extend(growing)
        return answers(examples, task, growing, *more)

    monkeypatch.setattr(sapt, "answers", noted)
    app = create_app(sapt)
    app.state.batcher.start()

    async def leave() -> list[int]:
        client = Client(app, body(PROMPTS[0], stream=stream))
        await comes(lambda: any(reply.tokens for reply in replies))
        await client.leave()
        other = Client(app, body("a", max_tokens=1))
        await comes(lambda: bool(other.statuses))  # when the one before it has ended
        await asyncio.to_thread(app.state.batcher.close)
        return other.statuses

    assert asyncio.run(leave()) == [200]
    left, _ = replies
    assert not left.ended
    assert len(left.tokens) < 1500


@pytest.mark.parametrize("stream", [False, True])
def test_who_has_left_takes_no_place_in_the_queue(stream: bool, sapt: Learner) -> None:
    app = create_app(sapt, queue_size=1)  # its thread does not run, so that whoever asks waits
    batcher = app.state.batcher

    async def ask() -> list[int]:
        first = Client(app, body("a", stream=stream))
        await comes(lambda: len(batcher.waiting) == 1)
        (job,) = batcher.waiting
        await first.leave()
        second = Client(app, body("a", stream=stream))
        await comes(lambda: job not in batcher.waiting)
        third = Client(app, body("a", stream=stream))
        await comes(lambda: bool(third.statuses))
        await second.leave()
        return third.statuses

    assert asyncio.run(ask()) == [429]


def test_generate_streams_in_a_terminal(
    backbone_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned("seqlora", backbone_folder("llama"), tmp_path / "run")
    arguments = ("generate", tmp_path / "run", PROMPTS[0])
    expected = call(*arguments).out
    outputs: list[str] = []

    class Terminal:
        def isatty(self) -> bool:
            return True

        def write(self, text: str) -> int:
            outputs.append(text)
            return len(text)

        def flush(self) -> None:
            pass

    from retain.cli.answering import generate

    monkeypatch.setattr(sys, "stdout", Terminal())
    generate(tmp_path / "run", [PROMPTS[0]])
    assert "".join(outputs) == expected
    assert len(outputs) > 3
    outputs.clear()
    generate(tmp_path / "run", [PROMPTS[0]], as_json=True)
    assert json.loads("".join(outputs))["output"] + "\n" == expected


# -- the command


@pytest.mark.slow
def test_the_command_serves_until_it_is_ended(
    backbone_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    learned("seqlora", backbone_folder("llama"), tmp_path / "run")
    command = [sys.executable, "-m", "retain", "serve", "run", "--port", "0"]
    environment = {**os.environ, "RETAIN_API_KEY": "k\n"}  # as files of secrets end
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline().split()
            url = line[line.index("at") + 1]
            request = urllib.request.Request(
                f"{url}v1/models", headers={"Authorization": "Bearer k"}
            )
            with urllib.request.urlopen(request, timeout=30) as response:
                assert json.load(response)["data"][0]["id"] == "run"
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


@pytest.mark.parametrize(
    ("key", "more", "says"),
    [
        ("", (), "RETAIN_API_KEY is empty"),
        ("\n", (), "RETAIN_API_KEY is empty"),
        (None, ("--port", "{taken}"), "cannot listen on this address (Address already in use)"),
        (None, ("--host", "203.0.113.1"), "203.0.113.1:8000: cannot listen on this address"),
        (None, ("--port", "0"), "no such run"),
    ],
)
def test_where_it_cannot_serve(
    key: str | None,
    more: tuple[str, ...],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RETAIN_API_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("RETAIN_API_KEY", key)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = call("serve", tmp_path / "none", *(m.format(taken=port) for m in more))
    assert done.status == 2
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert says in done.err


def test_without_the_extra_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("retain.serve")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    done = call("serve", tmp_path)
    assert done.status == 2
    assert "uvicorn is not installed; run: pip install 'retain[serve]'" in done.err
