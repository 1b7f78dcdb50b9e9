"""`retain serve`: a run behind OpenAI's chat-completions interface, and a page to try it."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import uvicorn

from retain.errors import RetainError
from retain.learner import Learner
from retain.serve.app import create_app

KEY = "RETAIN_API_KEY"
PATIENCE = 10
"""Seconds that answers under way have after Ctrl-C."""


def serve(
    folder: Path,
    host: str,
    port: int,
    waiting: int,
    say: Callable[[str], None],
    trust_remote_code: bool = False,
) -> None:
    """Answers until Ctrl-C.

    Args:
        folder: the run directory.
        host: name or address to listen on.
        port: 0 takes a free one.
        waiting: requests that may wait for the model.
        say: is told the address, once requests are accepted.
        trust_remote_code: as in `Learner.load`.

    Raises:
        RetainError: when the run has nothing to answer with, or nobody can listen there.
    """
    key = os.environ.get(KEY)
    if key is not None and not key.strip():
        raise RetainError(f"{KEY} is empty; give it a key, or unset it")
    with _bound(host, port) as listening:
        learner = Learner.load(folder, trust_remote_code=trust_remote_code)
        learner.refuse_unready()
        address, port = listening.getsockname()[:2]
        local = ipaddress.ip_address(address).is_loopback
        app = create_app(learner, key, waiting, local)
        url = f"http://{f'[{address}]' if ':' in address else address}:{port}/"
        listening.listen()
        say(f"serves {folder} at {url} until Ctrl-C")
        if not local and key is None:
            say(f"warning: whoever reaches {address} can use it; set {KEY} to ask for a key")
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=PATIENCE)
        with suppress(KeyboardInterrupt):  # uvicorn raises it again after it has ended in order
            uvicorn.Server(config).run(sockets=[listening])


def _bound(host: str, port: int) -> socket.socket:
    """Taken at once, but not listened on before the model is there."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with ExitStack() as unless_bound:
            listening = unless_bound.enter_context(socket.socket(family, kind))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            unless_bound.pop_all()
    except OSError as error:
        cause = error.strerror or error
        raise RetainError(
            f"{host}:{port}: cannot listen there ({cause}); choose another --host or --port"
        ) from None
    return listening
