"""`run_server`: a server from its first moment to its last.

    bind ─▶ listen (503, loading) ─▶ find the models ─▶ load them ─▶ ready ─▶ signal ─▶ drain or interrupt ─▶ gone
SIGTERM lets running requests finish within shutdown_timeout; SIGINT, or a second signal, ends them at once, each with an
error of its own.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from vllm import env
from vllm.config import EngineArgs
from vllm.entrypoints.serve.app import App
from vllm.entrypoints.serve.context import Server, apart
from vllm.entrypoints.serve.engine import Engine
from vllm.entrypoints.serve.guard import with_cors
from vllm.entrypoints.serve.lineup import ModelArgs, Room
from vllm.entrypoints.serve.listen import Listener, bind, url_of
from vllm.entrypoints.serve.logs import use_format
from vllm.entrypoints.serve.metrics import ModelMetrics
from vllm.entrypoints.serve.rendering import check_template
from vllm.entrypoints.serve.routes import routes
from vllm.entrypoints.serve.served import ServedModel
from vllm.entrypoints.serve.settings import ServerArgs
from vllm.entrypoints.serve.tracing import Tracing
from vllm.errors import VllmError
from vllm.logging import get_logger

logger = get_logger(__name__)

_LAST_WORDS = 0.3  # seconds that an interrupted server has to send what it still has to say
_PAGES = {"/": "a chat page", "/docs": "/docs", "/metrics": "/metrics"}
_LOOPBACK = ("127.", "::1", "localhost")


def run_server(
    models: Sequence[ModelArgs], server_args: ServerArgs, make_engine: Callable[[EngineArgs], Engine] | None = None
) -> int:
    """Serve models until a signal comes; return the exit status.

    Raises ConfigError or ModelError for what cannot work.  `make_engine` makes another engine than the usual one.
    """
    use_format(server_args.log_format)
    listener = bind(server_args)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(_serve(models, server_args, listener, make_engine or _make_engine))
    finally:
        listener.close()


def _make_engine(args: EngineArgs) -> Engine:
    from vllm.engine.async_engine import AsyncEngine

    return AsyncEngine(args)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    if sys.platform == "win32":
        return asyncio.new_event_loop
    import uvloop

    return uvloop.new_event_loop


async def _serve(
    models: Sequence[ModelArgs],
    args: ServerArgs,
    socket_: socket.socket,
    make_engine: Callable[[EngineArgs], Engine],
) -> int:
    begun = time.monotonic()
    server = Server(args, models)
    names = ", ".join(model.names[0] for model in models)
    if args.otlp_traces_endpoint:
        server.tracing = Tracing(args.otlp_traces_endpoint, names)
    keys = [*args.api_key, *filter(None, [env.api_key()])]
    app = App(server, routes(args), keys)
    listener = Listener(with_cors(app, args), socket_, args)
    signals = Signals()
    await listener.open()
    url = url_of(socket_, args)
    logger.info("listening at %s, loading %s", url, names)
    if not keys and not args.uds and not args.host.startswith(_LOOPBACK):
        logger.warning("there is no API key: whoever reaches this machine may use the model; --api-key asks for one")
    loading = asyncio.create_task(load(server, make_engine))
    try:
        await signals.wait_with(loading)
        if loading.done():
            loading.result()  # raises what went wrong
            _log_ready(server, url, time.monotonic() - begun)
            await signals.wait()
    finally:
        await _end(app, listener, signals, loading)
        signals.close()
    return 0


async def load(server: Server, make_engine: Callable[[EngineArgs], Engine]) -> None:
    """Find the models, which may mean to download them, and load one after another."""
    for model in server.models:
        with _named(model, server):
            engine = await apart(make_engine, model.args.engine)
        metrics = ModelMetrics(server.metrics, model.names[0])
        model.engine, model.metrics, engine.observer = engine, metrics, metrics
    rooms: dict[str, Room] = {}
    for model in server.models:
        with _named(model, server):
            await _load_one(model, rooms if len(server.models) > 1 else None)
    for model in server.models:
        model.watch()  # from now on: none is unloaded while others are still loading
    gc.collect()
    gc.freeze()  # what is there now stays: there is nothing in it to look for


@contextmanager
def _named(model: ServedModel, server: Server) -> Iterator[None]:
    """Have errors say which of several models they are about."""
    try:
        yield
    except VllmError as error:
        if len(server.models) == 1:
            raise
        raise type(error)(f"{model.names[0]}: {error}") from error


async def _load_one(model: ServedModel, rooms: dict[str, Room] | None) -> None:
    """Load a model.  `rooms`: those of the devices that several models are on."""
    engine, args = model.engine, model.args.engine
    assert engine is not None, "it has been found"
    if rooms is not None and args.device in rooms:
        engine.free_bytes = rooms[args.device].free
    await asyncio.gather(engine.start(), apart(check_template, engine.chat_renderer()))
    loaded = model.known().ready
    assert loaded is not None and model.metrics is not None, "an engine that has started says what it has planned"
    if rooms is not None:
        room = rooms.setdefault(args.device, Room(loaded.free_bytes))
        room.take(loaded.num_bytes)
        engine.free_bytes = room.free
    cache = {"block_size": args.block_size, "cache_dtype": args.kv_cache_dtype}
    cache |= {"enable_prefix_caching": args.enable_prefix_caching, "num_gpu_blocks": loaded.num_blocks}
    model.metrics.describe({**cache, "num_tokens": loaded.num_cache_tokens})
    model.metrics.loaded(True)


def _log_ready(server: Server, url: str, seconds: float) -> None:
    paths = {route.path for route in server.routes}
    pages = ", ".join(name for path, name in _PAGES.items() if path in paths)
    logger.info("ready in %.1f s: %s; at %s (%s)", seconds, "; ".join(map(_facts, server.models)), url, pages)


def _facts(model: ServedModel) -> str:
    engine = model.known()
    assert engine.ready is not None, "an engine that has started says what it has planned"
    length = f"{engine.model_config.max_model_len:,} tokens of context"
    return ", ".join([*model.names, length, engine.ready.memory])


async def _end(app: App, listener: Listener, signals: Signals, loading: asyncio.Task[None]) -> None:
    """Let requests finish or end them, then the engine."""
    listener.close()
    server, timeout = app.server, app.server.settings.shutdown_timeout
    started = time.monotonic()
    if signals.drains and listener.connections.tasks:
        logger.info("waiting at most %g s for %d requests", timeout, len(listener.connections.tasks))
        finishing = asyncio.create_task(listener.finish(timeout))
        await signals.wait_with(finishing, again=True)
        finishing.cancel()
    if listener.connections.tasks:
        app.interrupt()
        await listener.finish(_LAST_WORDS)
    await listener.hang_up(_LAST_WORDS)
    loading.cancel()
    await asyncio.gather(loading, return_exceptions=True)
    left = timeout - (time.monotonic() - started) if signals.drains else 0.0
    await asyncio.gather(*(model.stop(max(0.0, left)) for model in server.models))
    server.close()


class Signals:
    """Listens to SIGTERM and SIGINT."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._came = asyncio.Event()
        self._again = asyncio.Event()
        self.drains = False
        """Whether running requests may finish."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._take, number)

    def _take(self, number: signal.Signals) -> None:
        if self._came.is_set():
            self._again.set()
        self.drains = number == signal.SIGTERM and not self._again.is_set()
        self._came.set()

    async def wait(self) -> None:
        """Wait for a signal."""
        await self._came.wait()

    async def wait_with(self, task: asyncio.Task[Any], again: bool = False) -> None:
        """Wait for a signal (`again`: for a second one), or for a task to end."""
        waiting = asyncio.create_task((self._again if again else self._came).wait())
        await asyncio.wait({waiting, task}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()

    def close(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.remove_signal_handler(number)
