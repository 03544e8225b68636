"""`ServedModel`: one of a server's models, and whether it is loaded.

    loading ─▶ loaded ── nobody asked for it for a while ──▶ unloaded
                 ▲                                              │
                 └────── the next request, which waits ◀────────┘
A request holds a place (`num_running`) from before it looks whether the model is loaded until it has ended, and a model with
a place taken is not unloaded.  Loading again is a task that no request owns: all that wait share it, and may leave.
"""

from __future__ import annotations

import asyncio
import functools
import time
from typing import TYPE_CHECKING, Literal

from vllm.entrypoints.serve.engine import Engine
from vllm.entrypoints.serve.errors import RETRY_AFTER, HttpError
from vllm.entrypoints.serve.lineup import ModelArgs
from vllm.entrypoints.serve.settings import ServerArgs
from vllm.inputs.chat import ChatRenderer
from vllm.logging import get_logger

if TYPE_CHECKING:
    from vllm.entrypoints.serve.metrics import ModelMetrics
    from vllm.entrypoints.serve.sampling import Sampling

logger = get_logger(__name__)


class ServedModel:
    """A model under its names.  `engine` is None until the model's folder has been found and read."""

    def __init__(self, args: ModelArgs, settings: ServerArgs) -> None:
        self.args = args
        self.names = args.names
        self.settings = settings
        self.engine: Engine | None = None
        queued, max_num_seqs = settings.max_num_queued_reqs, args.engine.max_num_seqs
        self.max_waiting = max_num_seqs + (4 * max_num_seqs if queued is None else queued)
        self.num_running = 0
        """Requests that are worked on: computed, or waiting for it."""
        self.metrics: ModelMetrics | None = None
        self.is_unloaded = False
        self._failure: str | None = None
        """Why it could not be loaded again, the last time that this was tried."""
        self._last_used = time.monotonic()
        self._unloading: asyncio.Task[None] | None = None
        self._loading: asyncio.Task[None] | None = None
        self._look: asyncio.TimerHandle | None = None

    def known(self) -> Engine:
        """Return the engine, whether it can compute now or not.  Raises HttpError: 503 until it has been loaded once."""
        engine = self.engine
        if engine is None or engine.ready is None:
            raise HttpError(503, "the model is still loading; try again", retry_after=RETRY_AFTER)
        return engine

    def check_ready(self) -> None:
        """Raise HttpError: 503 while a known model can't compute, but for one that is unloaded: `awake` is for that."""
        assert self.engine is not None
        state = self.engine.state
        if state != "ready" and not self.is_unloaded:
            why = {
                "loading": "the model is still loading",
                "dead": "the engine died and is being started again",
                "stopping": "the server is shutting down",
            }.get(state, f"the engine is {state}")
            raise HttpError(503, f"{why}; try again", retry_after=RETRY_AFTER)

    def check_purpose(self, purpose: Literal["generate", "pool"], what: str) -> None:
        """Raise HttpError: 404 if a known model is not for that.  `what` is the path or field that needs it."""
        assert self.engine is not None
        pooling = self.engine.model_config.pooling
        if (pooling is None) is (purpose == "generate"):
            return
        if pooling is None:
            raise HttpError(
                404,
                f"{self.names[0]} is a generative model, and {what} is for models that pool; to make it one, start the "
                "server with --runner pooling",
                "model",
            )
        raise HttpError(
            404,
            f"{self.names[0]} is a pooling model, which can {', '.join(pooling.tasks)}, and {what} is for models that "
            "generate; ask /v1/embeddings, /classify, /score, /rerank or /pooling",
            "model",
        )

    def health(self) -> str | None:
        """Return what is wrong, in words for everybody; None if all is well, as with a model that is unloaded."""
        if self.engine is None:
            return "the model is being loaded"
        if self.is_unloaded:
            return None if self._failure is None else "the model can't be loaded again"
        return self.engine.health()

    @functools.cached_property
    def renderer(self) -> ChatRenderer:
        return self.known().chat_renderer()

    @functools.cached_property
    def sampling(self) -> Sampling:
        from vllm.entrypoints.serve.sampling import Sampling

        return Sampling(self.known().model_config, self.settings)

    def leave(self) -> None:
        """Give a place back."""
        self.num_running -= 1
        self._last_used = time.monotonic()

    def watch(self) -> None:
        """Unload the model when nobody has asked for it long enough, if that is wanted.  Call it once it is loaded."""
        after = self.args.unload_after
        if after > 0:
            self._last_used = time.monotonic()
            self._look = asyncio.get_running_loop().call_later(after, self._unload_if_idle)

    async def awake(self) -> None:
        """Wait until an unloaded model is loaded again.  The caller has a place.

        Raises HttpError: 503, with the cause, if it can't be; the next request tries again.
        """
        if self._loading is None:
            self._loading = asyncio.create_task(self._load_again())
        await asyncio.shield(self._loading)
        if self.is_unloaded:
            message = f"{self.names[0]} was unloaded and can't be loaded again: {self._failure}"
            raise HttpError(503, message, retry_after=RETRY_AFTER)

    async def stop(self, timeout: float) -> None:
        """End the engine for good, after what is running or after `timeout` seconds."""
        if self._look is not None:
            self._look.cancel()
        if self._loading is not None:
            self._loading.cancel()  # else it would start an engine after this one's end
            await asyncio.gather(self._loading, return_exceptions=True)
        if self.engine is not None:
            await self.engine.stop(timeout)

    def _unload_if_idle(self) -> None:
        after = self.args.unload_after
        is_busy = self.num_running > 0 or self.known().state != "ready"
        left = after if is_busy else self._last_used + after - time.monotonic()
        if left > 0:
            self._look = asyncio.get_running_loop().call_later(left, self._unload_if_idle)
            return
        logger.info("%s is unloaded: there was no request for %g s", self.names[0], after)
        self.is_unloaded, self._failure = True, None
        self._tell_metrics()
        self._unloading = asyncio.create_task(self.known().stop(0.0))

    async def _load_again(self) -> None:
        begun = time.monotonic()
        try:
            if self._unloading is not None:
                await self._unloading  # it has begun, and would end what is started now
            await self.known().start()
        except Exception as error:
            self._failure = str(error) or type(error).__name__
            logger.error("%s can't be loaded again: %s", self.names[0], self._failure)
        else:
            self.is_unloaded = False
            self._tell_metrics()
            self.watch()
            logger.info("%s is loaded again, in %.1f s", self.names[0], time.monotonic() - begun)
        finally:
            self._loading = None

    def _tell_metrics(self) -> None:
        if self.metrics is not None:
            self.metrics.loaded(not self.is_unloaded)
