"""The HTTP application: routes, access checks and request limits."""

from __future__ import annotations

import asyncio
import hmac
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from retain.errors import RetainError
from retain.learner.learned_model import Answer, LearnedModel
from retain.serve.batcher import Batcher, FailedError, Job, QueueFullError, StoppingError
from retain.serve.encoding import Encoder
from retain.serve.protocol import DONE, ChatRequest, Completion, error_body, event, read_request

MAX_BODY = 1 << 20
"""Maximum number of bytes of a request; ten times what the longest prompts need."""
BODY_SECONDS = 30.0
"""Seconds in which the body of a request must arrive."""
BEARER = Depends(HTTPBearer(auto_error=False))
CHAT = "/v1/chat/completions"
READ = ["GET", "HEAD"]
"""Methods of what is only read; proxies look with HEAD whether a server is there."""
FAILED = "the model failed on this request; see the server's log"
STOPPED = "the server ends before this request is answered; ask again later"
LOCAL = re.compile(r"(localhost|127(\.\d+){3}|\[::1\])(:\d+)?", re.ASCII | re.IGNORECASE)
"""`Host` headers that name this machine itself, which no web page elsewhere can send."""
PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content security policy of the page: it may connect to its own origin only."""


def create_app(
    learned: LearnedModel, key: str | None = None, queue_size: int = 64, local: bool = False
) -> FastAPI:
    """Creates the application over a loaded run; from now on only its own thread uses the model.

    Args:
        learned: a run that has learned a task.
        key: the key that `Authorization: Bearer …` must have; None allows every request.
        queue_size: maximum number of requests that wait to be encoded, and again of those that wait
            for the model; one more gets 429.
        local: whether only requests to a name of this machine are answered. Otherwise a web page
            that rebinds its own name to this machine (DNS rebinding) could read answers.
    """
    batcher = Batcher(learned, queue_size)
    encoder = Encoder(learned.backbone, queue_size)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        yield
        encoder.close()
        await asyncio.to_thread(batcher.close)

    host_check = [Depends(_check_host)] if local else []
    # A redirect would name this process's scheme and host, which a proxy before it has changed.
    app = FastAPI(
        lifespan=lifespan, openapi_url=None, dependencies=host_check, redirect_slashes=False
    )
    app.exception_handler(HTTPException)(_refused)
    app.exception_handler(404)(_not_offered)
    app.exception_handler(405)(_not_offered)
    app.exception_handler(Exception)(_failed)
    app.state.batcher = batcher
    model = learned.run.path.resolve().name.encode(errors="replace").decode()
    key_check = [Depends(_key_check(key))]
    page = files("retain.serve").joinpath("page.html").read_text(encoding="utf-8")

    @app.api_route("/", methods=READ)
    def show_page() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": PAGE_POLICY})

    @app.api_route("/v1/models", methods=READ, dependencies=key_check)
    def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [show_model(model)]}

    @app.api_route("/v1/models/{name:path}", methods=READ, dependencies=key_check)
    def show_model(name: str) -> dict[str, Any]:
        _check_model(name, model)
        return {
            "id": model,
            "object": "model",
            "created": 0,
            "owned_by": "retain",
            "tasks": [task.name for task in learned.tasks],
            "needs_task": learned.method.traits.needs_task_id,
        }

    @app.post(CHAT, dependencies=key_check)
    async def complete(
        request: Request, chat: Annotated[ChatRequest, Depends(_chat_request)]
    ) -> Response:
        try:
            job = await _job(chat, learned, encoder, model)
            batcher.submit(job)
        except RetainError as error:
            raise HTTPException(400, str(error)) from None
        except QueueFullError:
            message = f"the queue of {queue_size} requests is full; try again later"
            raise HTTPException(429, message, {"Retry-After": "1"}) from None
        except StoppingError:
            raise HTTPException(503, STOPPED) from None
        completion = Completion(chat, job, model)
        if chat.stream:
            headers = {"Cache-Control": "no-cache"}
            return StreamingResponse(
                _stream(job, completion), media_type="text/event-stream", headers=headers
            )
        watch = asyncio.create_task(_watch(request, job))
        try:
            *_, answer = [event async for event in _events(job, completion)]
        except FailedError:
            raise HTTPException(500, FAILED) from None
        except StoppingError:
            raise HTTPException(503, STOPPED) from None
        except ClientDisconnect:
            raise _left() from None
        finally:
            watch.cancel()
        assert isinstance(answer, Answer)  # the last event of a job that did not fail
        return JSONResponse(completion.body(answer))

    return app


async def _check_host(request: Request) -> None:
    """Refuses a request whose `Host` header is no name of this machine."""
    host = request.headers.get("host", "")
    if not LOCAL.fullmatch(host):
        message = (
            f"request: its Host is '{host}', but a server on the loopback address accepts only "
            "names of its own machine; let the proxy send 'Host: localhost', or start retain serve "
            "with another --host"
        )
        raise HTTPException(400, message)


def _key_check(key: str | None) -> Any:
    def check_key(credentials: Annotated[HTTPAuthorizationCredentials | None, BEARER]) -> None:
        token = credentials.credentials if credentials else ""
        if key is not None and not hmac.compare_digest(token.encode("latin-1"), key.encode()):
            message = "this server needs its key; send 'Authorization: Bearer KEY'"
            raise HTTPException(401, message, {"WWW-Authenticate": "Bearer"})

    return check_key


async def _chat_request(request: Request) -> ChatRequest:
    """Reads and checks the body.

    Content types other than JSON are refused, since a foreign web page could send them.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(415, "request: its Content-Type must be application/json")
    coding = request.headers.get("content-encoding", "identity")
    if coding.lower() != "identity":
        raise HTTPException(415, f"request: its body is in {coding[:60]}; send it uncompressed")
    try:
        async with asyncio.timeout(BODY_SECONDS):
            content = await _body(request)
        return read_request(content)
    except TimeoutError:
        message = f"request: its body did not arrive in {BODY_SECONDS:.0f} s; send it again"
        raise HTTPException(408, message, {"Connection": "close"}) from None
    except ClientDisconnect:
        raise _left() from None
    except RetainError as error:
        raise HTTPException(400, str(error)) from None


def _left() -> HTTPException:
    """The response that ends a request whose client has left; nobody reads it."""
    return HTTPException(400, "request: its client has left")


async def _body(request: Request) -> bytes:
    """Reads the body up to MAX_BODY bytes."""
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > MAX_BODY:
            raise HTTPException(413, f"request: longer than {MAX_BODY} bytes; shorten it")
    return bytes(content)


def _check_model(name: str, served: str) -> None:
    if name != served:
        raise HTTPException(404, f"field 'model': only '{served}' is served here; name it")


async def _job(chat: ChatRequest, learned: LearnedModel, encoder: Encoder, model: str) -> Job:
    """Makes the job of a request; refuses here what would fail in the model's thread."""
    if chat.model is not None:
        _check_model(chat.model, model)
    known = [task.name for task in learned.tasks]
    task = chat.task if learned.method.traits.needs_task_id else None
    names = ", ".join(known)
    if learned.method.traits.needs_task_id and task not in known:
        raise HTTPException(400, f"field 'task': this method needs the task's name, one of {names}")
    if chat.task is not None and chat.task not in known:
        raise HTTPException(
            400, f"field 'task': no task '{chat.task[:60]}'; name one of {names}, or leave it out"
        )
    example = chat.example()
    limit = min(learned.answer_limit, chat.limit or learned.answer_limit)
    encoded = await encoder.encode(example, limit, learned.templated(task))
    return Job(example, encoded, task, limit, chat.stream or bool(chat.stop))


async def _watch(request: Request, job: Job) -> None:
    """Cancels a job if its client disconnects; a streaming response does this itself."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    job.put(ClientDisconnect())


async def _events(job: Job, completion: Completion) -> AsyncIterator[str | Answer]:
    """Yields chunks for the pieces of the answer, if it streams, and then the full answer.

    A stop text ends the answer early.
    """
    async for part in job.events():
        yield part if isinstance(part, Answer) else completion.piece(part)
        if completion.stopped:
            job.reply.cancelled = True


async def _stream(job: Job, completion: Completion) -> AsyncIterator[str]:
    """Yields the server-sent events of a streaming response."""
    yield completion.begin()
    try:
        async for part in _events(job, completion):
            if chunks := completion.end(part) if isinstance(part, Answer) else part:
                yield chunks
    except FailedError:
        yield event(error_body(500, FAILED)) + DONE
    except StoppingError:
        yield event(error_body(503, STOPPED)) + DONE


def _refused(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    body = error_body(error.status_code, error.detail)
    return JSONResponse(body, error.status_code, error.headers)


def _not_offered(request: Request, error: Exception) -> JSONResponse:
    """Says of an address or a method that is not served what is; other refusals have their text."""
    assert isinstance(error, HTTPException)
    if error.detail == HTTPException(error.status_code).detail:
        asked = f"{request.method[:20]} {request.url.path[:100]}"
        error.detail = f"request: no {asked} here; send POST {CHAT}, or GET /v1/models"
    return _refused(request, error)


def _failed(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse(error_body(500, FAILED), 500)
