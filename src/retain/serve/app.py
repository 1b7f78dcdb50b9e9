"""The HTTP side: which address answers what, who may ask, and how much."""

from __future__ import annotations

import asyncio
import hmac
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Annotated, Any

import pydantic_core
from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from retain.errors import RetainError
from retain.experiment.validation import check
from retain.learner import Answer, Learner
from retain.serve.batcher import Batcher, Job, QueueFullError
from retain.serve.protocol import ChatRequest, Completion, error_body, event

MAX_BODY = 1 << 20
"""Bytes of a request; ten times what the longest prompts need."""
BEARER = Depends(HTTPBearer(auto_error=False))
FAILED = "the model failed on this request; the server's log says why"
LOCAL = re.compile(r"(localhost|127(\.\d+){3}|\[::1\])(:\d+)?", re.ASCII | re.IGNORECASE)
"""Names that mean this machine to itself, whoever asks."""
PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The page reaches its own origin and nothing else."""


def create_app(
    learner: Learner, key: str | None = None, waiting: int = 64, local: bool = False
) -> FastAPI:
    """The application over a loaded run; from here on only its own thread uses the model.

    Args:
        learner: has learned something.
        key: what `Authorization: Bearer …` has to say; None lets everybody in.
        waiting: requests that may wait for the model; one more gets 429.
        local: answers only to the names of this machine, so that no web page which rebinds its own
            name to it can read answers.
    """
    batcher = Batcher(learner, waiting)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        yield
        await asyncio.to_thread(batcher.close)

    everywhere = [Depends(_check_host)] if local else []
    app = FastAPI(lifespan=lifespan, openapi_url=None, dependencies=everywhere)
    app.exception_handler(HTTPException)(_refused)
    app.exception_handler(Exception)(_failed)
    app.state.batcher = batcher
    model = learner.run.path.resolve().name
    guarded = [Depends(_key_check(key))]
    page = files("retain.serve").joinpath("page.html").read_text(encoding="utf-8")

    @app.get("/")
    def show_page() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": PAGE_POLICY})

    @app.get("/v1/models", dependencies=guarded)
    def list_models() -> dict[str, Any]:
        served = {
            "id": model,
            "object": "model",
            "created": 0,
            "owned_by": "retain",
            "tasks": [task.name for task in learner.tasks],
            "needs_task": learner.method.traits.needs_task_id,
        }
        return {"object": "list", "data": [served]}

    @app.post("/v1/chat/completions", dependencies=guarded)
    async def complete(
        request: Request, asked: Annotated[ChatRequest, Depends(_chat_request)]
    ) -> Response:
        job = _job(asked, learner, model)
        try:
            batcher.submit(job)
        except QueueFullError:
            message = f"{waiting} requests wait already, the most that may; try again"
            raise HTTPException(429, message, {"Retry-After": "1"}) from None
        completion = Completion(asked, job, model)
        if asked.stream:
            headers = {"Cache-Control": "no-cache"}
            return StreamingResponse(
                _stream(job, completion), media_type="text/event-stream", headers=headers
            )
        watch = asyncio.create_task(_watch(request, job))
        try:
            *_, answer = [told async for told in _events(job, completion)]
        except Exception:
            raise HTTPException(500, FAILED) from None
        finally:
            watch.cancel()
        assert isinstance(answer, Answer)  # nothing else ends a job
        return JSONResponse(completion.whole(answer))

    return app


async def _check_host(request: Request) -> None:
    host = request.headers.get("host", "")
    if not LOCAL.fullmatch(host):
        message = (
            f"request: its Host is '{host}', and a server on the loopback address answers to names "
            "of its own machine only; let the proxy send 'Host: localhost', or start retain serve "
            "with another --host"
        )
        raise HTTPException(400, message)


def _key_check(key: str | None) -> Any:
    def check_key(given: Annotated[HTTPAuthorizationCredentials | None, BEARER]) -> None:
        token = given.credentials if given else ""
        if key is not None and not hmac.compare_digest(token.encode("latin-1"), key.encode()):
            message = "this server needs its key, as 'Authorization: Bearer KEY'"
            raise HTTPException(401, message, {"WWW-Authenticate": "Bearer"})

    return check_key


async def _chat_request(request: Request) -> ChatRequest:
    """The body, checked; any type but JSON's is refused, which a foreign web page could send."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(415, "request: its Content-Type must be application/json")
    try:
        return check(ChatRequest, pydantic_core.from_json(await _body(request)), "request")
    except ValueError as error:
        raise HTTPException(400, f"request: not JSON ({error}); correct it") from None
    except RetainError as error:
        raise HTTPException(400, str(error)) from None


async def _body(request: Request) -> bytes:
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > MAX_BODY:
            raise HTTPException(413, f"request: has more than {MAX_BODY} bytes; shorten it")
    return bytes(content)


def _job(asked: ChatRequest, learner: Learner, model: str) -> Job:
    """What the model's thread needs; refused here is what would fail there."""
    if asked.model not in (None, model):
        raise HTTPException(404, f"field 'model': there is only '{model}' here")
    known = [task.name for task in learner.tasks]
    task = asked.task if learner.method.traits.needs_task_id else None
    if learner.method.traits.needs_task_id and task not in known:
        message = f"field 'task': this method needs the task's name, one of {', '.join(known)}"
        raise HTTPException(400, message)
    try:
        return Job(asked.example(), task, asked.limit, asked.stream or bool(asked.stop))
    except RetainError as error:
        raise HTTPException(400, str(error)) from None


async def _watch(request: Request, job: Job) -> None:
    """Ends the answer of who leaves before it is whole; for a stream, its response does that."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    job.put(ClientDisconnect())


async def _events(job: Job, completion: Completion) -> AsyncIterator[str | Answer]:
    """Chunks of the answer, if its pieces are told, and then the whole; a stop ends it early."""
    async for told in job.events():
        yield told if isinstance(told, Answer) else completion.piece(told)
        if completion.stopped:
            job.reply.cancelled = True


async def _stream(job: Job, completion: Completion) -> AsyncIterator[str]:
    yield completion.begin()
    try:
        async for told in _events(job, completion):
            if chunks := completion.end(told) if isinstance(told, Answer) else told:
                yield chunks
    except Exception:
        yield event(error_body(500, FAILED))


def _refused(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    body = error_body(error.status_code, error.detail)
    return JSONResponse(body, error.status_code, error.headers)


def _failed(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse(error_body(500, FAILED), 500)
