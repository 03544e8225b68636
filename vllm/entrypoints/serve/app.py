"""The ASGI application: a table of routes, and for each request one way through it.

    guard ─▶ route ─▶ body ─▶ model ─▶ handler ─▶ reply or events
A request ends early when its client leaves, when its time is up, or when the server is interrupted.  Each of these
cancels the task that answers it, which closes the engine's iterator, which aborts the work.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

from vllm.entrypoints.serve.context import Call, Server, request_id
from vllm.entrypoints.serve.errors import RETRY_AFTER, HttpError, explain
from vllm.entrypoints.serve.guard import Guard, Place
from vllm.entrypoints.serve.http import ClientGone, EventStream, Receive, Reply, Send, decoder, read_body
from vllm.entrypoints.serve.route import Route, Router
from vllm.logging import get_logger

logger = get_logger(__name__)

_NO_PLACE = nullcontext()
_PATIENCE = 0.005  # seconds; most requests that need no engine are answered within, and need nobody to watch the client


class App:
    """Answers requests.  `interrupt` ends those that are under way."""

    def __init__(self, server: Server, routes: Iterable[Route], keys: Iterable[str] = ()) -> None:
        self.server = server
        self.router = Router(routes)
        server.routes = self.router.routes
        self.guard = Guard(server.settings, [*keys])
        self._open = {route.path for route in server.routes if route.is_open}
        self._decoders = {
            route.path: decoder(route.body, route.refused) for route in server.routes if route.body and not route.form
        }
        self._under_way: set[Exchange] = set()

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._answer(scope, receive, send)
        elif scope["type"] == "lifespan":
            await _lifespan(receive, send)
        else:  # a web socket: none of our endpoints is one
            await receive()
            await send({"type": "websocket.close", "code": 1000})

    def interrupt(self) -> None:
        """End what is under way: each client is told, and nothing is computed any more."""
        why = HttpError(503, "the server was interrupted", retry_after=RETRY_AFTER)
        for exchange in tuple(self._under_way):
            exchange.end(why)

    async def _answer(self, scope: Any, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        exchange = Exchange(receive, request_id(headers))
        route: Route | None = None
        self._under_way.add(exchange)
        path = self._path(scope)
        try:
            owner = b"" if path in self._open else self.guard.check_key(scope["headers"])
            self.guard.check_headers(scope)
            if scope["method"] == "OPTIONS":
                allow = self.router.allowed(self.router.methods(path)).encode()
                await Reply(b"", headers=[(b"allow", allow), exchange.named]).send(scope, send)
                return
            route, parameters = self.router.find(scope["method"], path)
            call = Call(self.server, exchange.request_id, headers, parameters, scope["query_string"].decode("latin-1"))
            call.owner = owner
            await self._handle(route, call, scope, exchange, send)
        except ClientGone:
            pass
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and not exchange.ended:
                raise  # whoever runs the application wants it to stop
            told = exchange.told(error, scope)
            if told is not None:
                body = (self.router.error(path) if route is None else route.error)(told)
                await Reply(body, told.status, headers=[*told.headers, exchange.named]).send(scope, send)
        finally:
            exchange.close()
            self._under_way.discard(exchange)

    def _path(self, scope: Any) -> str:
        """Return the path below root_path, whether the proxy takes that off or not."""
        path, root = scope["path"], self.server.settings.root_path
        return path[len(root) :] if root and path.startswith(root + "/") else path

    async def _handle(self, route: Route, call: Call, scope: Any, exchange: Exchange, send: Send) -> None:
        settings = self.server.settings
        if route.body is not None:
            limits = (settings.max_body_bytes, settings.body_timeout)
            call.raw = await read_body(exchange.receive, call.headers, *limits, is_form=route.form is not None)
            if route.form is not None:
                call.body = route.form(call.raw, call.headers.get(b"content-type", b""))
            else:
                call.body = self._decoders[route.path](call.raw)
            call.choose(call.body.model)
        _check(route, call)
        if settings.enable_log_requests or (self.server.tracing and route.computes):
            call.facts = {}
        begun = time.time_ns()
        exchange.watch(settings.request_timeout)
        with Place(call) if route.computes else _NO_PLACE:
            try:
                if route.computes and call.model.is_unloaded:
                    await call.model.awake()
                answer = await route.handler(call)
                exchange.request_id = call.request_id
                answer.headers = [*answer.headers, exchange.named]
                if isinstance(answer, EventStream):
                    await answer.send(send, lambda error: exchange.told(error, scope))
                else:
                    await answer.send(scope, send)
            finally:
                exchange.request_id = call.request_id
                if call.facts is not None:
                    self._book(scope, route, call, (begun, time.time_ns()), exchange)

    def _book(self, scope: Any, route: Route, call: Call, span: tuple[int, int], exchange: Exchange) -> None:
        """Write down what is known of a request that has ended: in the log, as a span."""
        facts, error = call.facts or {}, sys.exc_info()[1]
        if isinstance(error, Exception):
            exchange.told(error, scope)
        if self.server.settings.enable_log_requests:
            _log(scope, facts, (span[1] - span[0]) / 1e9, exchange)
        if self.server.tracing is not None and route.computes:
            why = exchange.why.message if exchange.why is not None else "client gone" if exchange.ended else None
            self.server.tracing.record(route.path, call.headers, {"model": call.model_name, **facts}, span, why)


class Exchange:
    """One request on its way, and why it ends early if it does."""

    __slots__ = ("_deadline", "_task", "_timer", "_watcher", "ended", "receive", "request_id", "why")

    def __init__(self, receive: Receive, request_id: str) -> None:
        self.receive = receive
        self.request_id = request_id
        self.ended = False
        self.why: HttpError | None = None
        """What the client is told; None: it is gone."""
        self._task = asyncio.current_task()
        self._timer: asyncio.TimerHandle | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._watcher: asyncio.Task[None] | None = None

    @property
    def named(self) -> tuple[bytes, bytes]:
        """The header by which every answer can be found in the log."""
        return b"x-request-id", self.request_id.encode()

    def what(self, scope: Any) -> str:
        """Return how the log calls a request that failed."""
        return f"{_named(scope)} (request {self.request_id})"

    def watch(self, timeout: float | None) -> None:
        """Watch the client from now on, and the clock if there is a `timeout` in seconds."""
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(_PATIENCE, self._start_watching)
        if timeout is not None:
            why = HttpError(503, f"not done within request_timeout={timeout:g} seconds", retry_after=RETRY_AFTER)
            self._deadline = loop.call_later(timeout, self.end, why)

    def end(self, why: HttpError | None) -> None:
        """End the exchange now."""
        if not self.ended and self._task is not None:
            self.ended, self.why = True, why
            self._task.cancel()

    def told(self, error: BaseException, scope: Any) -> HttpError | None:
        """End with an exception: return what the client is to hear of it; None if it hears nothing any more."""
        if not self.ended:
            self.ended, self.why = True, explain(error, self.what(scope))
        return self.why

    def close(self) -> None:
        for handle in (self._timer, self._deadline, self._watcher):
            if handle is not None:
                handle.cancel()
        self._task = None

    def _start_watching(self) -> None:
        self._watcher = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass
        self.end(None)


def _check(route: Route, call: Call) -> None:
    """Raise HttpError if the model can't do, or not now, what a route is for."""
    if route.needs_model:
        call.engine = call.model.known()
    if route.purpose is not None:
        call.model.check_purpose(route.purpose, route.path)
    if route.computes:
        call.model.check_ready()


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return


def _named(scope: Any) -> str:
    """Return how the log calls a request: as it came, since a decoded path may hold line breaks."""
    return f"{scope['method']} {scope['raw_path'].decode('latin-1')[:200]}"


def _log(scope: Any, facts: dict[str, Any], seconds: float, exchange: Exchange) -> None:
    shown = " ".join(f"{name}={value!r}" for name, value in facts.items())
    end = "" if not exchange.ended else " client gone" if exchange.why is None else f" {exchange.why.message}"
    logger.info("%s %.0f ms %s%s", _named(scope), 1000 * seconds, shown, end)
