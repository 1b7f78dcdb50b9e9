"""The HTTP server: how many clients it takes, and how it ends."""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from retain.serve.connections import Connection, close_oldest

PATIENCE = 7.0
"""Seconds in which answers may end after a signal. With what follows it is less than the ten
seconds that container engines wait before they kill."""
LAST_WORDS = 1.0
"""Seconds in which clients are told after that, before their connections are closed."""
MOST_CONNECTIONS = 512
OTHER_DESCRIPTORS = 128
"""Descriptors for files, and for connections that are not yet counted or not yet closed."""
FEWEST_CONNECTIONS = 16
AT_ONCE = 16
"""Connections accepted before those that they replace are closed."""
UNACCEPTED = 1024
"""Connections that the system keeps until they are accepted."""
logger = logging.getLogger("uvicorn.error")


def most_connections() -> int:
    """Returns how many connections the limit on open files allows."""
    try:
        import resource
    except ImportError:  # Windows, where it is no limit of the process
        return MOST_CONNECTIONS
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MOST_CONNECTIONS
    return max(FEWEST_CONNECTIONS, min(MOST_CONNECTIONS, soft - OTHER_DESCRIPTORS))


class Server(uvicorn.Server):
    """uvicorn's server, which a signal ends in an orderly way and with status 0.

    SIGTERM, SIGINT and SIGHUP end it alike: it accepts no new request, gives those begun PATIENCE
    seconds, and then tells the rest that it ends. A second signal skips the patience.

    Args:
        app: from `create_app`.
        ready: is called once requests are accepted.
    """

    def __init__(self, app: FastAPI, ready: Callable[[], None]) -> None:
        config = uvicorn.Config(
            app,
            http=Connection,
            ws="none",
            log_level="warning",
            backlog=AT_ONCE,
            limit_concurrency=most_connections(),
            # The last resort: all connections are closed before.
            timeout_graceful_shutdown=round(PATIENCE + 3 * LAST_WORDS),
        )
        super().__init__(config)
        self._stop_answers: Callable[[], None] = app.state.batcher.stop
        self._ready = ready
        self._hurry = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handles the signals while the server runs. uvicorn would raise them again at its end."""
        self._loop = asyncio.get_running_loop()
        signals = [signal.SIGINT, signal.SIGTERM]
        hangup: signal.Signals | None = getattr(signal, "SIGHUP", None)  # not on Windows
        if hangup and signal.getsignal(hangup) is not signal.SIG_IGN:  # nohup lets it be ignored
            signals.append(hangup)
        before = {number: signal.signal(number, self.handle_exit) for number in signals}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Ends the server; a second signal ends it sooner."""
        if self.should_exit:
            self._loop.call_soon_threadsafe(self._hurry.set)
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to accept requests."""
        asyncio.get_running_loop().set_exception_handler(self._handle_error)
        await super().startup(sockets)
        # asyncio accepts as many at once as may wait; these are different numbers here.
        for listening in sockets or []:
            listening.listen(UNACCEPTED)
        self._ready()

    def _handle_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Makes room if no connection can be accepted for want of descriptors."""
        error = context.get("exception")
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            closed = close_oldest(self.server_state.connections)
            logger.warning("no descriptor is free; closed %d old connection(s)", closed)
        else:
            loop.default_exception_handler(context)

    @property
    def _connections(self) -> set[Connection]:
        return {c for c in self.server_state.connections if isinstance(c, Connection)}

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends the server once all answers are given, or the patience is over."""
        ending = asyncio.create_task(self._end_answers())
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()

    async def _end_answers(self) -> None:
        await asyncio.sleep(LAST_WORDS / 4)
        for connection in self._connections:
            if connection.awaits_headers:  # it was just being accepted
                connection.drop()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._hurry.wait(), PATIENCE)
        self._stop_answers()
        await asyncio.sleep(LAST_WORDS)
        for connection in self._connections:
            connection.drop()
