"""What a client hears when something is wrong: a status, a message, the field.

One shape for all of it: `{"error": {"message", "type", "param", "code"}}`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import msgspec

from vllm.errors import EngineDeadError, ModelError, OverloadedError, RequestError
from vllm.logging import get_logger

logger = get_logger(__name__)

_TYPES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    404: "NotFoundError",
    405: "MethodNotAllowedError",
    413: "PayloadTooLargeError",
    429: "RateLimitError",
    431: "HeadersTooLargeError",
    500: "InternalServerError",
    503: "ServiceUnavailableError",
}
STATUSES = tuple(_TYPES)
RETRY_AFTER = 1.0
"""Seconds: models of this kind load, and queues move, within a few of these."""
_LONGEST = 1000  # characters of a message, which may quote what a client sent


class ErrorBody(msgspec.Struct):
    """The inside of an error answer."""

    message: str
    type: str
    param: str | None
    code: int


class ErrorReply(msgspec.Struct):
    """What every endpoint answers when it can't do what was asked."""

    error: ErrorBody


class HttpError(Exception):
    """An answer that is an error."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        *,
        retry_after: float | None = None,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        """`retry_after`: seconds after which it may go better."""
        super().__init__(message)
        self.status = status
        self.message = message if len(message) <= _LONGEST else f"{message[: _LONGEST - 3]}..."
        self.param = param
        self.headers = [*headers]
        if retry_after is not None:
            self.headers.append((b"retry-after", b"%d" % max(1, round(retry_after))))

    @property
    def type(self) -> str:
        return _TYPES.get(self.status, "Error")

    def body(self) -> bytes:
        """Return the error as JSON."""
        return msgspec.json.encode(ErrorReply(ErrorBody(self.message, self.type, self.param, self.status)))


def explain(error: BaseException, what: str) -> HttpError:
    """Return what a client may know of an error.  `what` names the request in the log, for those that are our fault."""
    match error:
        case HttpError():
            return error
        case RequestError():
            return HttpError(400, str(error), error.param)
        case ModelError():  # a chat template that is missing, say: another endpoint may do
            return HttpError(400, str(error))
        case OverloadedError():  # a full queue is found before an engine is asked
            return HttpError(503, str(error), retry_after=error.retry_after)
        case EngineDeadError():
            return HttpError(500, str(error))
    logger.error("%s failed", what, exc_info=error)
    return HttpError(500, f"internal error ({type(error).__name__}); the server's log says more")


@contextmanager
def in_words_of(names: Mapping[str, str]) -> Iterator[None]:
    """Have errors name fields as an API does; `names`: from the names that errors have to the API's."""
    try:
        yield
    except RequestError as error:
        name = names.get(error.param or "")
        if name is None:
            raise
        raise RequestError(f"{name}: {error}", name) from None
