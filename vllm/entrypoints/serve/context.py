"""What a handler works with: the `Server` that it belongs to, and the `Call` that it answers with one of its models."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qs

from vllm.entrypoints.serve.engine import Engine
from vllm.entrypoints.serve.errors import HttpError
from vllm.entrypoints.serve.lineup import ModelArgs
from vllm.entrypoints.serve.served import ServedModel
from vllm.entrypoints.serve.settings import ServerArgs

if TYPE_CHECKING:
    from vllm.entrypoints.serve.metrics import Metrics
    from vllm.entrypoints.serve.route import Route
    from vllm.entrypoints.serve.tracing import Tracing

T = TypeVar("T")

LARGE = 16 * 1024  # bytes; what is made of smaller bodies takes well under a millisecond
_IDS = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:/=+")


class Server:
    """What all calls share."""

    def __init__(self, settings: ServerArgs, models: Sequence[ModelArgs]) -> None:
        self.settings = settings
        self.models = [ServedModel(args, settings) for args in models]
        """The first is asked where a request names none."""
        self._by_name = {name: model for model in self.models for name in model.names}
        self.created = int(time.time())
        self.routes: list[Route] = []
        self.tracing: Tracing | None = None
        self.sandboxes = asyncio.Semaphore(2)
        """Processes for templates of requests."""
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="text")

    @property
    def num_running(self) -> int:
        """Requests that are worked on, with any model."""
        return sum(model.num_running for model in self.models)

    def model_named(self, name: str | None) -> ServedModel:
        """Return a model by its name.  Raises HttpError: 404 for one that is not served."""
        if not name:
            return self.models[0]
        model = self._by_name.get(name)
        if model is None:
            shown = name if len(name) <= 100 else name[:97] + "..."
            known = ", ".join(self._by_name)
            raise HttpError(404, f"the model {shown!r} does not exist; this server has {known}", "model")
        return model

    @functools.cached_property
    def metrics(self) -> Metrics:
        from vllm.entrypoints.serve.metrics import Metrics

        return Metrics()

    async def work(self, size: int, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Run a function of text: at once if `size`, the bytes it comes from, is small, else in a thread."""
        if size < LARGE:
            return function(*args, **kwargs)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, functools.partial(function, *args, **kwargs))

    def close(self) -> None:
        if self.tracing is not None:
            self.tracing.close()
        self._threads.shutdown(wait=False, cancel_futures=True)


class Call:
    """One request to the server."""

    __slots__ = (
        *("body", "engine", "facts", "headers", "model", "model_name", "owner", "parameters", "query", "raw"),
        *("request_id", "server"),
    )
    engine: Engine
    """The model's engine, where the route needs a model."""

    def __init__(
        self,
        server: Server,
        request_id: str,
        headers: dict[bytes, bytes],
        parameters: dict[str, str],
        query: str = "",
    ) -> None:
        self.server = server
        self.model = server.models[0]
        """The model that it is about."""
        self.model_name = self.model.names[0]
        """What its answer calls the model."""
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

    def choose(self, name: str | None) -> None:
        """Let the call be about a model; None: the first.  Raises HttpError: 404 for one that is not served."""
        self.model = self.server.model_named(name)
        self.model_name = name or self.model.names[0]

    def models(self) -> Sequence[ServedModel]:
        """Return the models that a call without a body is about: the one of its query's `model`, or all.

        Raises HttpError: 404 for one that is not served.
        """
        names = parse_qs(self.query).get("model")
        return self.server.models if names is None else [self.server.model_named(names[0])]

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
