"""What a handler works with: the `Server` that it belongs to, and the `Call` that it answers."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from vllm.entrypoints.serve.engine import Engine
from vllm.entrypoints.serve.errors import HttpError
from vllm.entrypoints.serve.settings import ServerArgs
from vllm.inputs.chat import ChatRenderer

if TYPE_CHECKING:
    from vllm.entrypoints.serve.metrics import Metrics
    from vllm.entrypoints.serve.route import Route
    from vllm.entrypoints.serve.sampling import Sampling
    from vllm.entrypoints.serve.tracing import Tracing

T = TypeVar("T")

DEFAULT_NAME = "default"
"""What the model inside the package is called."""
RETRY_AFTER = 1.0
"""Seconds: models of this kind load, and queues move, within a few of these."""
_LARGE = 16 * 1024  # bytes; what is made of smaller bodies takes well under a millisecond
_IDS = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:/=+")


class Server:
    """What all calls share.  `engine` is None until the model's folder has been found and read."""

    def __init__(
        self, settings: ServerArgs, engine: Engine | None = None, *, model: str = "", max_num_seqs: int = 256
    ) -> None:
        """`model` is the name that the user gave; `max_num_seqs` how many sequences the engine runs at a time."""
        self.settings = settings
        self.engine = engine
        self.names = settings.served_model_name or [model or DEFAULT_NAME]
        queued = settings.max_num_queued_reqs
        self.max_waiting = max_num_seqs + (4 * max_num_seqs if queued is None else queued)
        self.created = int(time.time())
        self.num_running = 0
        """Requests that are worked on: computed, or waiting for it."""
        self.routes: list[Route] = []
        self.tracing: Tracing | None = None
        self.sandboxes = asyncio.Semaphore(2)
        """Processes for templates of requests."""
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="text")

    def ready(self) -> Engine:
        """Return the engine.  Raises HttpError: 503 while it can't run anything."""
        engine = self.engine
        if engine is None:
            raise HttpError(503, "the model is still loading; try again", retry_after=RETRY_AFTER)
        if engine.state != "ready":
            why = {
                "loading": "the model is still loading",
                "dead": "the engine died and is being started again",
                "stopping": "the server is shutting down",
            }.get(engine.state, f"the engine is {engine.state}")
            raise HttpError(503, f"{why}; try again", retry_after=RETRY_AFTER)
        return engine

    def model_named(self, name: str | None) -> str:
        """Return the name that an answer carries.  Raises HttpError: 404 for a model that is not served."""
        if not name or name in self.names:
            return name or self.names[0]
        shown = name if len(name) <= 100 else name[:97] + "..."
        raise HttpError(404, f"the model {shown!r} does not exist; this server has {', '.join(self.names)}", "model")

    def check_purpose(self, purpose: Literal["generate", "pool"], what: str) -> None:
        """Raise HttpError: 404 if the model is not for that.  `what` is the path or field that needs it."""
        pooling = self.ready().model_config.pooling
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

    @functools.cached_property
    def renderer(self) -> ChatRenderer:
        return self.ready().chat_renderer()

    @functools.cached_property
    def metrics(self) -> Metrics:
        from vllm.entrypoints.serve.metrics import Metrics

        return Metrics(self.names[0])

    @functools.cached_property
    def sampling(self) -> Sampling:
        from vllm.entrypoints.serve.sampling import Sampling

        return Sampling(self.ready().model_config, self.settings)

    async def work(self, size: int, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Run a function of text: at once if `size`, the bytes it comes from, is small, else in a thread."""
        if size <= _LARGE:
            return function(*args, **kwargs)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, functools.partial(function, *args, **kwargs))

    def close(self) -> None:
        if self.tracing is not None:
            self.tracing.close()
        self._threads.shutdown(wait=False, cancel_futures=True)


class Call:
    """One request to the server."""

    __slots__ = ("body", "facts", "headers", "owner", "parameters", "query", "raw", "request_id", "server")

    def __init__(
        self,
        server: Server,
        request_id: str,
        headers: dict[bytes, bytes],
        parameters: dict[str, str],
        query: str = "",
    ) -> None:
        self.server = server
        self.request_id = request_id
        """What its answer calls the request."""
        self.headers = headers
        self.owner = b""
        """Whose request it is: something that only requests with the same API key have."""
        self.raw = b""
        self.body: Any = None
        """The decoded body: a struct of the route's type."""
        self.parameters = parameters
        """Those of the path."""
        self.query = query
        """What follows the path's question mark."""
        self.facts: dict[str, Any] | None = None
        """What the line about this request says, if there is to be one."""

    @property
    def settings(self) -> ServerArgs:
        return self.server.settings

    def header(self, name: bytes) -> str | None:
        """Return a header's value; `name` in small letters."""
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")

    def id(self, given: str | None = None) -> str:
        """Return what the request is called, which its body may say as `given`.

        Raises HttpError: 400 if `given` is none.
        """
        if given is not None:
            if not _is_id(given):
                raise HttpError(400, "request_id: at most 128 letters, digits and -_.:/=+ make an id", "request_id")
            self.request_id = given
        if self.facts is not None:
            self.facts["request_id"] = self.request_id
        return self.request_id


def request_id(headers: Mapping[bytes, bytes]) -> str:
    """Return what a request is called: what its X-Request-Id says if that is an id, else something new."""
    given = headers.get(b"x-request-id", b"").decode("latin-1")
    return given if _is_id(given) else new_id()


def new_id() -> str:
    return secrets.token_hex(12)


def _is_id(name: str) -> bool:
    return 0 < len(name) <= 128 and set(name.encode()) <= _IDS


async def apart(function: Callable[..., T], *args: Any) -> T:
    """Run a function in a thread that nobody waits for: an interpreter that ends leaves it where it is."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def book(result: T | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        outcome: tuple[T | None, BaseException | None]
        try:
            outcome = (function(*args), None)
        except BaseException as error:
            outcome = (None, error)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody wants to know any more
            loop.call_soon_threadsafe(book, *outcome)

    threading.Thread(target=run, daemon=True, name=function.__name__).start()
    return await done
