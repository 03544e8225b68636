"""The lines of a batch, answered by the server's own application, without a socket.

    line ─▶ App (the server's routes) ─▶ AsyncEngine ─▶ answer
So a line means what it would mean to `vllm serve`, with two differences: a field that nobody knows is refused, since who
writes a file can correct it, and a line may call the model as it likes.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import msgspec

from vllm.config import EngineArgs
from vllm.entrypoints.batch.lines import ENDPOINTS, Answer, Line
from vllm.entrypoints.serve.app import App
from vllm.entrypoints.serve.context import Server
from vllm.entrypoints.serve.engine import Engine
from vllm.entrypoints.serve.http import JSON, WHOLE
from vllm.entrypoints.serve.lineup import DEFAULT_NAME, one_model
from vllm.entrypoints.serve.route import Route
from vllm.entrypoints.serve.routes import routes
from vllm.entrypoints.serve.settings import ServerArgs
from vllm.errors import did_you_mean

_PAUSE = 0.1  # seconds between looks at an engine that is being started again


def answer_locally(args: EngineArgs, lines: list[Line]) -> Iterator[Answer]:
    """Give each line's answer as it comes.  The model is loaded if a line needs it.

    Raises ConfigError or ModelError if it can't be loaded.  Closing the iterator ends what is under way.
    """
    sound = [line for line in lines if line.error is None]
    yield from (line.refused(line.error) for line in lines if line.error is not None)
    if not sound:
        return
    with asyncio.Runner() as runner:
        batch = _Batch(make_engine(args), args, sound)
        try:
            runner.run(batch.start())
            for _ in sound:
                yield runner.run(batch.answers.get())
        finally:
            runner.run(batch.stop())


def make_engine(args: EngineArgs) -> Engine:
    from vllm.engine.async_engine import AsyncEngine

    return AsyncEngine(args)


class _Batch:
    """Lines on their way through an application."""

    def __init__(self, engine: Engine, args: EngineArgs, lines: list[Line]) -> None:
        named = [name for line in lines if isinstance(name := line.body.get("model"), str) and name]
        names = [*dict.fromkeys([args.model or DEFAULT_NAME, *named])]
        # The file and the engine are the same user's, who may bring templates.
        settings = ServerArgs(served_model_name=names, trust_request_chat_template=True)
        self.server = Server(settings, [one_model(args, settings)])
        self.server.models[0].engine = engine
        self.app = App(self.server, [_strict(route) for route in routes(settings) if route.path in ENDPOINTS])
        self.answers: asyncio.Queue[Answer] = asyncio.Queue()
        self._engine = engine
        self._waiting = deque(lines)
        self._most = 2 * args.max_num_seqs  # under way at a time; more would only wait in the engine
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        await self._engine.start()
        self._tasks = [asyncio.create_task(self._work()) for _ in range(min(self._most, len(self._waiting)))]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._engine.stop(0.0)
        self.server.close()

    async def _work(self) -> None:
        while self._waiting:
            line = self._waiting.popleft()
            try:
                answer = await self._answer(line)
            except Exception as error:  # a fault of ours: the line must have its answer, and the others theirs
                answer = line.refused(f"{type(error).__name__}: {error}", 500)
            self.answers.put_nowait(answer)

    async def _answer(self, line: Line) -> Answer:
        while self._engine.state in ("loading", "dead"):  # a line before this one ended the engine
            await asyncio.sleep(_PAUSE)
        status, name, body = await self._post(line.url, json.dumps(line.body).encode())
        return Answer(line.custom_id, status, msgspec.json.decode(body), name)

    async def _post(self, path: str, body: bytes) -> tuple[int, str, bytes]:
        """Ask the application; return status, the request's id and the body."""
        found: list[tuple[int, str, bytes]] = []

        def take(status: int, headers: Any, body: bytes) -> bool:
            found.append((status, dict(headers)[b"x-request-id"].decode(), body))
            return True

        async def receive() -> Any:
            if not sent:
                sent.append(True)
                return {"type": "http.request", "body": body}
            return await asyncio.get_running_loop().create_future()  # nobody leaves

        async def send(message: Any) -> None:
            raise AssertionError("an answer that is no stream comes in one piece")

        sent: list[bool] = []
        scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
        await self.app({**scope, "headers": [(b"content-type", JSON)], WHOLE: take}, receive, send)
        return found[0]


def _strict(route: Route) -> Route:
    """Return a route that refuses fields nobody knows."""
    known = [field.encode_name for kind in route.bodies for field in msgspec.structs.fields(kind)]

    def refused(name: str, value: Any) -> str | None:
        reason = route.refused(name, value)
        if reason is None and value is not None:
            return f"there is no such field.{did_you_mean(name, known)}"
        return reason

    return replace(route, refused=refused)
