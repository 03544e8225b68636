"""Connections: uvicorn's HTTP protocol, with limits on what happens before the application is asked."""

from __future__ import annotations

import asyncio
import functools
import socket
import struct
import time
from collections.abc import Sequence
from email.utils import formatdate

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from vllm.entrypoints.serve.context import new_id
from vllm.entrypoints.serve.errors import HttpError
from vllm.entrypoints.serve.http import WHOLE
from vllm.entrypoints.serve.settings import ServerArgs

_LINGER = 2.0  # seconds in which a client may notice that it was answered before it had sent everything
_DISCARD = struct.pack("ii", 1, 0)


class Connections(ServerState):
    """All connections of a server, and the tasks that answer their requests."""

    def __init__(self) -> None:
        super().__init__()
        self.second = 0

    def set_date(self) -> None:
        """Have answers carry the present date; done when a request comes, so that an idle server sleeps."""
        now = int(time.time())
        if now != self.second:
            self.second = now
            self.default_headers = [(b"date", formatdate(now, usegmt=True).encode())]


class Connection(HttpToolsProtocol):
    """One client's connection.

    The parser hands a request on when its headers are whole.  Until then they take memory and a socket, so their size
    and the time they take are limited here.
    """

    def __init__(
        self, config: Config, connections: Connections, settings: ServerArgs, loop: asyncio.AbstractEventLoop
    ) -> None:
        # What stands between connection and application must see the answers: CORS adds headers.
        self._is_direct = not settings.allowed_origins
        super().__init__(config, connections, {}, loop)
        self._all = connections
        self._settings = settings
        self._in_headers = True
        self._header_bytes = 0
        self._header_timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None
        self._lingers = False
        self.url = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_timer()  # some connect and say nothing

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._lingers:
            return
        super().data_received(data)
        if not self._in_headers or self.transport.is_closing():
            return
        self._header_bytes += len(data)
        if self._header_bytes > self._settings.max_header_bytes:
            self._refuse(431, f"headers are larger than max_header_bytes={self._settings.max_header_bytes:,}")
        elif self._header_timer is None:
            self._start_timer()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_headers = True
        self._header_bytes = 0
        self._all.set_date()

    def on_headers_complete(self) -> None:
        self._in_headers = False
        if self._header_timer is not None:
            self._stop_timer()
        super().on_headers_complete()
        if self._is_direct:
            self.scope[WHOLE] = functools.partial(send_whole, self, self.cycle)  # type: ignore[literal-required]

    def pause_writing(self) -> None:
        """Somebody asks and does not listen: what waits for them takes memory, and their request its place."""
        super().pause_writing()
        self._send_timer = self.loop.call_later(self._settings.send_timeout, self._discard)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None

    def timeout_keep_alive_handler(self) -> None:
        """Hang up on a client without a request, also on one that has not taken its last answer."""
        if self.transport.get_write_buffer_size():
            self._discard()
        super().timeout_keep_alive_handler()

    def linger(self) -> None:
        """Hang up on a client that is still sending: if that were done at once, it would lose the answer too."""
        self._lingers = True
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self.loop.call_later(_LINGER, self.transport.abort)

    def send_400_response(self, msg: str) -> None:
        if len(self.url) > self._settings.max_header_bytes:  # the parser's own limit may be the smaller one
            self._refuse(431, f"the URL is larger than max_header_bytes={self._settings.max_header_bytes:,}")
        else:
            self._refuse(400, "this is not HTTP/1.1")

    def _unsupported_upgrade_warning(self) -> None:
        """Nothing to say: the request is answered as it is."""

    def _start_timer(self) -> None:
        self._header_timer = self.loop.call_later(self._settings.header_timeout, self._too_slow)

    def _stop_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _too_slow(self) -> None:
        if self._header_bytes:
            self._refuse(400, f"headers did not arrive within header_timeout={self._settings.header_timeout:g} seconds")
        else:
            self.transport.close()

    def _refuse(self, status: int, message: str) -> None:
        """Answer without the application, and hang up."""
        if not self.transport.is_closing():
            body = HttpError(status, message).body()
            head = b"content-type: application/json\r\nconnection: close\r\n"
            head += b"x-request-id: %s\r\ncontent-length: %d\r\n\r\n" % (new_id().encode(), len(body))
            self.transport.write(STATUS_LINE[status] + head + body)
            if self.cycle is None or self.cycle.response_complete:
                self.linger()
            else:
                self.transport.close()

    def _discard(self) -> None:
        """Close the connection and forget what was not taken, also what the system holds of it."""
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _DISCARD)
        self.transport.abort()


def send_whole(
    connection: Connection,
    cycle: RequestResponseCycle,
    status: int,
    headers: Sequence[tuple[bytes, bytes]],
    body: bytes,
) -> bool:
    """Send an answer that is there in one piece; return False if it must wait, or go, the way of ASGI.

    Most answers are such.  One write instead of two, and no looking at headers that are our own, make 30 µs of processor
    time of the 41 that GET /version took (wrk, 64 connections, Zen 4).
    """
    if cycle.response_started or cycle.disconnected or cycle.flow.write_paused:
        return False
    parts = [STATUS_LINE[status]]
    for name, value in (*cycle.default_headers, *headers):
        if name == b"connection":  # the only one we send is close
            cycle.keep_alive = False
        else:
            parts += (name, b": ", value, b"\r\n")
    if not cycle.keep_alive:
        parts.append(b"connection: close\r\n")
    parts.append(b"\r\n")
    if cycle.scope["method"] != "HEAD":
        parts.append(body)
    cycle.response_started = cycle.response_complete = True
    cycle.transport.write(b"".join(parts))
    cycle.message_event.set()
    if cycle.keep_alive:
        pass
    elif cycle.more_body:
        connection.linger()
    else:
        cycle.transport.close()
    cycle.on_response()
    return True
