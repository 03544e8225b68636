"""`run_server`: a server from its first moment to its last.

    bind ─▶ listen (503, loading) ─▶ find the model ─▶ load it ─▶ ready ─▶ signal ─▶ drain or interrupt ─▶ gone
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
from collections.abc import Callable
from typing import Any

from vllm import env
from vllm.config import EngineArgs
from vllm.entrypoints.serve.app import App
from vllm.entrypoints.serve.context import Server, apart
from vllm.entrypoints.serve.engine import Engine
from vllm.entrypoints.serve.guard import with_cors
from vllm.entrypoints.serve.listen import Listener, bind, url_of
from vllm.entrypoints.serve.logs import use_format
from vllm.entrypoints.serve.rendering import check_template
from vllm.entrypoints.serve.routes import routes
from vllm.entrypoints.serve.settings import ServerArgs
from vllm.entrypoints.serve.tracing import Tracing
from vllm.logging import get_logger

logger = get_logger(__name__)

_LAST_WORDS = 0.3  # seconds that an interrupted server has to send what it still has to say
_PAGES = {"/": "a chat page", "/docs": "/docs", "/metrics": "/metrics"}
_LOOPBACK = ("127.", "::1", "localhost")


def run_server(
    engine_args: EngineArgs, server_args: ServerArgs, make_engine: Callable[[EngineArgs], Engine] | None = None
) -> int:
    """Serve a model until a signal comes; return the exit status.

    Raises ConfigError or ModelError for what cannot work.  `make_engine` makes another engine than the usual one.
    """
    use_format(server_args.log_format)
    listener = bind(server_args)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(_serve(engine_args, server_args, listener, make_engine or _make_engine))
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
    engine_args: EngineArgs, args: ServerArgs, socket_: socket.socket, make_engine: Callable[[EngineArgs], Engine]
) -> int:
    begun = time.monotonic()
    server = Server(args, model=engine_args.model, max_num_seqs=engine_args.max_num_seqs)
    if args.otlp_traces_endpoint:
        server.tracing = Tracing(args.otlp_traces_endpoint, server.names[0])
    keys = [*args.api_key, *filter(None, [env.api_key()])]
    app = App(server, routes(args), keys)
    listener = Listener(with_cors(app, args), socket_, args)
    signals = Signals()
    await listener.open()
    url = url_of(socket_, args)
    logger.info("listening at %s, loading %s", url, server.names[0])
    if not keys and not args.uds and not args.host.startswith(_LOOPBACK):
        logger.warning("there is no API key: whoever reaches this machine may use the model; --api-key asks for one")
    loading = asyncio.create_task(_load(server, engine_args, make_engine))
    try:
        await signals.wait_with(loading)
        if loading.done():
            loading.result()  # raises what went wrong
            _log_ready(server, server.engine, url, time.monotonic() - begun)
            await signals.wait()
    finally:
        await _end(app, listener, signals, loading)
        signals.close()
    return 0


async def _load(server: Server, engine_args: EngineArgs, make_engine: Callable[[EngineArgs], Engine]) -> None:
    """Find the model, which may mean to download it, and load it."""
    engine = await apart(make_engine, engine_args)
    server.engine, engine.observer = engine, server.metrics
    await asyncio.gather(engine.start(), apart(check_template, engine.chat_renderer()))
    if (loaded := engine.ready) is not None:
        cache = {"block_size": engine_args.block_size, "cache_dtype": engine_args.kv_cache_dtype}
        cache |= {"enable_prefix_caching": engine_args.enable_prefix_caching, "num_gpu_blocks": loaded.num_blocks}
        server.metrics.describe({**cache, "num_tokens": loaded.num_cache_tokens})
    gc.collect()
    gc.freeze()  # what is there now stays: there is nothing in it to look for


def _log_ready(server: Server, engine: Engine | None, url: str, seconds: float) -> None:
    assert engine is not None and engine.ready is not None, "an engine that has started says what it has planned"
    paths = {route.path for route in server.routes}
    logger.info(
        "ready in %.1f s: %s, %s tokens of context, %s; at %s (%s)",
        seconds,
        ", ".join(server.names),
        f"{engine.model_config.max_model_len:,}",
        engine.ready.memory,
        url,
        ", ".join(name for path, name in _PAGES.items() if path in paths),
    )


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
    if server.engine is not None:
        left = timeout - (time.monotonic() - started) if signals.drains else 0.0
        await server.engine.stop(max(0.0, left))
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
