"""The HTTP server: how many clients it takes, and how it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import uvicorn
from fastapi import FastAPI

from retain.serve.connections import Connection, close_oldest

PATIENCE = 7.0
"""Seconds in which answers may end after a signal. With what follows it is less than the ten
seconds that container engines wait before they kill."""
LAST_WORDS = 1.0
"""Seconds in which clients are told after that, before their connections are closed."""
MOST_CONNECTIONS = 512
FEWEST_CONNECTIONS = 8
FREE_DESCRIPTORS = 32
"""Descriptors that are left for files, and for connections that are closed in the next moment."""
UNACCEPTED = 1024
"""Connections that the system keeps until they are accepted."""
RETRY = 0.05
"""Seconds between looks whether there is room for a client."""


def most_connections() -> int:
    """Returns how many connections the limit on open files allows."""
    try:
        import resource
    except ImportError:  # Windows, where it is no limit of the process
        return MOST_CONNECTIONS
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MOST_CONNECTIONS
    left = soft - len(os.listdir("/dev/fd")) - FREE_DESCRIPTORS
    return max(FEWEST_CONNECTIONS, min(MOST_CONNECTIONS, left))


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
            ws="none",
            log_level="warning",
            # The last resort: all connections are closed before.
            timeout_graceful_shutdown=round(PATIENCE + 2 * LAST_WORDS),
        )
        super().__init__(config)
        self._stop_answers: Callable[[], None] = app.state.batcher.stop
        self._ready = ready
        self._most_connections = most_connections()
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
        await super().startup([])  # uvicorn itself accepts nothing
        self._accepting = [asyncio.create_task(self._accept(each)) for each in sockets or []]
        self._ready()

    async def _accept(self, listening: socket.socket) -> None:
        """Accepts clients, as many as there is room for.

        asyncio accepts all that come. Then clients that say nothing use up the descriptors. Here a
        new client takes the place of the one that has kept the server waiting for the longest
        time; while the server waits for none of them, the new one waits.
        """
        listening.listen(UNACCEPTED)
        listening.setblocking(False)
        while True:
            try:
                client, _ = await self._loop.sock_accept(listening)
            except OSError:  # it has left already, or no descriptor is free
                close_oldest(self.server_state.connections, self._loop.time())
                await asyncio.sleep(RETRY)
                continue
            try:
                while len(self.server_state.connections) >= self._most_connections:
                    if not close_oldest(self.server_state.connections, self._loop.time()):
                        await asyncio.sleep(RETRY)
                await self._loop.connect_accepted_socket(self._new_connection, client)
            except OSError:
                client.close()

    def _new_connection(self) -> Connection:
        return Connection(self.config, self.server_state, self.lifespan.state, self._loop)

    @property
    def _connections(self) -> set[Connection]:
        return {c for c in self.server_state.connections if isinstance(c, Connection)}

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends the server once all answers are given, or the patience is over."""
        for accepting in self._accepting:
            accepting.cancel()
        await asyncio.wait(self._accepting)
        ending = asyncio.create_task(self._end_answers())
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()

    async def _end_answers(self) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._hurry.wait(), PATIENCE)
        self._stop_answers()
        await asyncio.sleep(LAST_WORDS)
        for connection in self._connections:
            connection.drop()
