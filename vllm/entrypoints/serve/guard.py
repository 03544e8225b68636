"""Who may come in, and how many: API keys, the size of headers, places for requests."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Sequence
from typing import Any

from vllm.entrypoints.serve.context import Call
from vllm.entrypoints.serve.errors import RETRY_AFTER, HttpError
from vllm.entrypoints.serve.settings import ServerArgs

Headers = Sequence[tuple[bytes, bytes]]
_BEARER = ((b"www-authenticate", b"Bearer"),)
_BASIC = ((b"www-authenticate", b'Basic realm="the password is the API key", charset="UTF-8"'),)


class Guard:
    """Looks at a request before anything is made of it."""

    def __init__(self, settings: ServerArgs, keys: Sequence[str]) -> None:
        """`keys`: a request must bring one of them; none: all may come in."""
        self.settings = settings
        self._digests = [_digest(key.encode()) for key in keys]

    def check_key(self, headers: Headers) -> bytes:
        """Return whose request it is: the digest of the key that its headers bring, empty where none is asked for.

        Raises HttpError: 401 unless there is one: as a bearer, as x-api-key, or as a password.

        The last is for browsers: they ask for it where they show a page, and send it with all that the page fetches.
        """
        if not self._digests:
            return b""
        given = [key for name, value in headers if (key := _key(name, value)) is not None]
        if not given:
            message = "this server asks for an API key, as the header Authorization: Bearer KEY or x-api-key: KEY"
            raise HttpError(401, message, headers=_challenge(headers))
        # Every key is compared with every digest, so that the time tells nothing.
        digests = [_digest(key) for key in given[:2]]
        found = [known for digest in digests for known in self._digests if hmac.compare_digest(digest, known)]
        if not found:
            raise HttpError(401, "the API key is wrong", headers=_challenge(headers))
        return found[0]

    def check_headers(self, scope: Any) -> None:
        """Raise HttpError: 431 for a request line and headers that are too many or too long."""
        headers, settings = scope["headers"], self.settings
        if len(headers) > settings.max_headers:
            raise HttpError(431, f"{len(headers)} headers are more than max_headers={settings.max_headers}")
        size = len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"")
        for name, value in headers:
            size += len(name) + len(value)
        if size > settings.max_header_bytes:
            raise HttpError(
                431, f"{size:,} bytes of headers are more than max_header_bytes={settings.max_header_bytes:,}"
            )


def _key(name: bytes, value: bytes) -> bytes | None:
    if name == b"x-api-key":
        return value
    if name != b"authorization":
        return None
    scheme, _, rest = value.partition(b" ")
    match scheme.lower():
        case b"bearer":
            return rest.strip()
        case b"basic":
            try:
                return base64.b64decode(rest, validate=True).partition(b":")[2]
            except ValueError:
                return b""
    return b""


def _challenge(headers: Headers) -> Headers:
    """Return how to bring a key: a browser that wants a page can ask its user."""
    wants_page = any(name == b"accept" and b"text/html" in value for name, value in headers)
    return _BASIC if wants_page else _BEARER


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


class Place:
    """A place with its model for a request that computes.  Entering raises HttpError: 503, 429 when there is none.

    A request is let in whenever the queue is not full, however many prompts it brings: one that is larger than the
    queue would else never get in.
    """

    __slots__ = ("_model", "_server")

    def __init__(self, call: Call) -> None:
        self._server, self._model = call.server, call.model

    def __enter__(self) -> None:
        model, most = self._model, self._server.settings.max_concurrent_requests
        if most is not None and self._server.num_running >= most:
            raise HttpError(503, f"max_concurrent_requests={most} are under way; try again", retry_after=RETRY_AFTER)
        if model.num_running >= model.max_waiting:
            message = (
                f"{model.num_running} requests run and wait, which is all that max_num_queued_reqs allows; try again"
            )
            raise HttpError(429, message, retry_after=RETRY_AFTER)
        model.num_running += 1

    def __exit__(self, *_: object) -> None:
        self._model.leave()


def with_cors(app: Any, settings: ServerArgs) -> Any:
    """Return the application, with answers to browsers about other sites' pages if any of those may call it."""
    if not settings.allowed_origins:
        return app
    from starlette.middleware.cors import CORSMiddleware

    return CORSMiddleware(
        app,
        allow_origins=settings.allowed_origins,
        allow_methods=settings.allowed_methods,
        allow_headers=settings.allowed_headers,
        allow_credentials=settings.allow_credentials,
        expose_headers=["X-Request-Id", "Retry-After"],
    )
