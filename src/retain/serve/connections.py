"""Time limits for clients that say nothing, and room for those that do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from retain.serve.protocol import error_body

HEADER_SECONDS = 10.0
"""Seconds in which a client must send the headers of its next request."""
READ_SECONDS = 30.0
"""Seconds in which a client must read something, while more of its answer is ready."""
UNDISTURBED = 1.0
"""Seconds that a client has for its request, however many others wait for a place."""


class Connection(H11Protocol):
    """uvicorn's connection, which ends when its client keeps it waiting.

    uvicorn itself has no time limit for headers, and none for a client that does not read.
    """

    since = 0.0
    """When the connection was made or its last response ended, in the event loop's time."""
    _timer: asyncio.TimerHandle | None = None

    @property
    def awaits_headers(self) -> bool:
        """Whether there is no request to answer."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def awaits_client(self) -> bool:
        """Whether the next request, or the rest of this one, has to come from the client."""
        return self.awaits_headers or self.cycle.more_body

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins to wait for a request."""
        super().connection_made(transport)
        self._await_headers()

    def data_received(self, data: bytes) -> None:
        """Takes bytes; once the headers are complete, the wait is over."""
        super().data_received(data)
        if not self.awaits_headers:
            self._stop_timer()

    def on_response_complete(self) -> None:
        """Begins to wait for the next request."""
        super().on_response_complete()
        if self.awaits_headers:
            self._await_headers()

    def send_400_response(self, msg: str) -> None:
        """Answers what is no HTTP as every other refusal is answered."""
        body = json.dumps(error_body(400, f"request: {msg}")).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        reply = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
        for part in (reply, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(part) or b"")
        self.transport.close()

    def pause_writing(self) -> None:
        """Waits until the client reads what was sent."""
        super().pause_writing()
        self._start_timer(READ_SECONDS)

    def resume_writing(self) -> None:
        """Goes on after the client has read."""
        super().resume_writing()
        self._stop_timer()
        if self.awaits_headers:
            self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the waits."""
        self._stop_timer()
        super().connection_lost(exc)

    def drop(self) -> None:
        """Closes the connection at once, whatever was not sent yet."""
        self.connections.discard(self)
        self.transport.abort()

    def _await_headers(self) -> None:
        self.since = self.loop.time()
        self._start_timer(HEADER_SECONDS)

    def _start_timer(self, seconds: float) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, self.drop)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def close_oldest(connections: Iterable[object], now: float) -> bool:
    """Closes the connection that has kept the server waiting longest, if it was undisturbed.

    Args:
        connections: all that are open.
        now: the event loop's time.

    Returns:
        Whether one was closed.
    """
    waiting = [c for c in connections if isinstance(c, Connection) and c.awaits_client]
    oldest = min(waiting, key=lambda connection: connection.since, default=None)
    if oldest is None or now - oldest.since < UNDISTURBED:
        return False
    oldest.drop()
    return True
