"""`retain serve`: OpenAI's chat-completions API over a run, and a web page to try it."""

from __future__ import annotations

import gc
import ipaddress
import os
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from retain.errors import RetainError
from retain.learner.learned_model import LearnedModel
from retain.serve.app import create_app
from retain.serve.server import Server

KEY = "RETAIN_API_KEY"


def serve(
    folder: Path,
    host: str,
    port: int,
    queue_size: int,
    announce: Callable[[str], None],
    trust_remote_code: bool = False,
) -> None:
    """Serves a run over HTTP until Ctrl-C, or another signal that ends it.

    Args:
        folder: the run directory.
        host: name or address to listen on.
        port: port to listen on; 0 takes a free one.
        queue_size: as in `create_app`.
        announce: receives a line with the address once requests are accepted, and warnings.
        trust_remote_code: as in `LearnedModel.load`.

    Raises:
        RetainError: if the run has learned no task, or the address cannot be used.
    """
    key = os.environ.get(KEY)
    if key is not None and not (key := key.strip()):  # no header has white space at its ends
        raise RetainError(f"{KEY} is empty; set it to a key, or unset it")
    with _bound(host, port) as listening:
        learned = LearnedModel.load(folder, trust_remote_code=trust_remote_code)
        learned.require_ready()
        address, port = listening.getsockname()[:2]
        local = ipaddress.ip_address(address).is_loopback
        app = create_app(learned, key, queue_size, local)
        url = f"http://{f'[{address}]' if ':' in address else address}:{port}/"

        def ready() -> None:
            announce(f"serves {folder} at {url} until Ctrl-C")
            if not local and key is None:
                announce(
                    f"warning: everyone who can reach {address} can use it; set {KEY} to require a "
                    "key"
                )

        # All that is loaded stays to the end. The garbage collector need not look at it again, not
        # while answers are made, and not when the interpreter ends: that would take seconds.
        gc.freeze()
        Server(app, ready).run(sockets=[listening])
        if app.state.batcher.alive:
            # The model computes a token for longer than the server may take to end. A thread in
            # the middle of that can crash the interpreter's own end.
            sys.stdout.flush()
            os._exit(0)


def _bound(host: str, port: int) -> socket.socket:
    """Binds a socket, so that a used port is reported before the model is loaded.

    It does not listen yet: clients would wait for the model to load.
    """
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
            f"{host}:{port}: cannot listen on this address ({cause}); choose another --host or "
            "--port"
        ) from None
    return listening
