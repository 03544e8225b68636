"""Bodies in, replies and event streams out: what HTTP means to a handler."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from vllm.entrypoints.serve.errors import HttpError
from vllm.errors import did_you_mean
from vllm.logging import get_logger

logger = get_logger(__name__)

Headers = Iterable[tuple[bytes, bytes]]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]

WHOLE = "vllm.whole"
"""Where a connection leaves, in a request's scope, the short way for an answer that is there in one piece."""
WholeSender = Callable[[int, Sequence[tuple[bytes, bytes]], bytes], bool]
"""Sends status, headers and body, in one piece; returns whether it could."""

JSON = b"application/json"
HTML = b"text/html; charset=utf-8"
EVENTS = b"text/event-stream; charset=utf-8"
DONE = b"data: [DONE]\n\n"

encode = msgspec.json.Encoder().encode
_names = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_WHERE = re.compile(r" - at `\$(.*?)(?:\[\.\.\.\])*`$")
_MISSING = re.compile(r"missing required field `(\w+)`")


class ClientGone(Exception):
    """The client left before its request was whole."""


class Reply:
    """A whole answer."""

    __slots__ = ("body", "content_type", "headers", "status")

    def __init__(self, body: bytes, status: int = 200, content_type: bytes = JSON, headers: Headers = ()) -> None:
        self.body = body
        self.status = status
        self.content_type = content_type
        self.headers = headers

    async def send(self, scope: Any, send: Send) -> None:
        length = b"%d" % len(self.body)
        headers = [(b"content-type", self.content_type), (b"content-length", length), *self.headers]
        whole: WholeSender | None = scope.get(WHOLE)
        if whole is not None and whole(self.status, headers, self.body):
            return
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


def json_reply(value: Any, headers: Headers = ()) -> Reply:
    return Reply(encode(value), headers=headers)


def error_event(error: HttpError) -> bytes:
    """Return how a stream of the OpenAI API ends in an error."""
    return b"data: " + error.body() + b"\n\n" + DONE


class EventStream:
    """An answer of server-sent events, each already in its form on the wire.

    The status waits for the first event: what fails before it has a status of its own; what fails later becomes the
    events of `failed`.
    """

    __slots__ = ("events", "failed", "headers")

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        failed: Callable[[HttpError], bytes] = error_event,
        headers: Headers = (),
    ) -> None:
        self.events = events
        self.failed = failed
        self.headers = headers

    async def send(self, send: Send, explain: Callable[[BaseException], HttpError | None]) -> None:
        """Send all events.  `explain` says what to tell of an exception; None: nobody is left to be told."""
        started = False
        try:
            async for event in self.events:
                if not started:
                    await self._start(send)
                    started = True
                await send({"type": "http.response.body", "body": event, "more_body": True})
            if not started:
                await self._start(send)
                started = True
            await send({"type": "http.response.body", "body": b""})
        except (Exception, asyncio.CancelledError) as error:
            if not started:
                raise
            told = explain(error)
            if told is None:
                return
            await send({"type": "http.response.body", "body": self.failed(told)})
        finally:
            await self.events.aclose()

    async def _start(self, send: Send) -> None:
        headers = [(b"content-type", EVENTS), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
        await send({"type": "http.response.start", "status": 200, "headers": [*headers, *self.headers]})


async def read_body(
    receive: Receive, headers: Mapping[bytes, bytes], limit: int, patience: float, *, is_form: bool = False
) -> bytes:
    """Return a request's body.

    Raises HttpError for one of more than `limit` bytes or of another type than JSON or a form, or that takes more than `patience`
    seconds to arrive, and ClientGone if it doesn't.
    """
    content_type, length = headers.get(b"content-type", b""), headers.get(b"content-length", b"0")
    if length.isdigit() and int(length[:20]) > limit:
        raise _too_large(limit)
    if is_form and not content_type.lower().startswith(b"multipart/form-data"):
        raise HttpError(400, "the content type must be multipart/form-data", "Content-Type", headers=_CLOSE)
    if not is_form and content_type != JSON and not _is_json(content_type):
        shown = content_type.decode("latin-1")[:80] or "none"
        raise HttpError(400, f"the content type must be application/json, got {shown}", "Content-Type", headers=_CLOSE)
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body", False):
        body = message.get("body", b"")
        if len(body) > limit:
            raise _too_large(limit)
        return body
    try:
        async with asyncio.timeout(patience):
            return await _read_rest(receive, message, limit)
    except TimeoutError:
        raise HttpError(
            400, f"the body did not arrive within body_timeout={patience:g} seconds", headers=_CLOSE
        ) from None


_CLOSE = ((b"connection", b"close"),)  # what is left of the body is not worth reading


async def _read_rest(receive: Receive, message: Any, limit: int) -> bytes:
    parts, size = [], 0
    while True:
        if message["type"] != "http.request":
            raise ClientGone
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            raise _too_large(limit)
        if not message.get("more_body", False):
            return b"".join(parts)
        message = await receive()


def _too_large(limit: int) -> HttpError:
    return HttpError(413, f"the body is larger than max_body_bytes={limit:,}; send less", headers=_CLOSE)


def _is_json(content_type: bytes) -> bool:
    kind = content_type.split(b";", 1)[0].strip().lower()
    return kind == JSON or (kind.startswith(b"application/") and kind.endswith(b"+json"))


Refused = Callable[[str, Any], str | None]
"""Says of a field that a body has and its type hasn't why it can't be served, "" if it may be ignored, None if nobody
knows it."""


def decoder(body: type[msgspec.Struct] | dict[str, type[msgspec.Struct]], refused: Refused) -> Callable[[bytes], Any]:
    """Return what turns a body into a struct of one kind, or of the kind whose field it has."""
    if not isinstance(body, dict):
        return BodyDecoder(body, refused)
    decoders = {name: BodyDecoder(kind, refused) for name, kind in body.items()}

    def decode(raw: bytes) -> Any:
        try:
            names = _names(raw)
        except msgspec.ValidationError as error:
            raise _invalid(error) from None
        except (ValueError, RecursionError) as error:
            raise _malformed(error, raw) from None
        for name, decode_one in decoders.items():
            if name in names:
                return decode_one(raw)
        raise HttpError(400, f"the body has none of {', '.join(decoders)}, which say what is asked for", [*decoders][0])

    return decode


_MOST_TOLD = 64  # clients choose the names; the log and the memory are ours


class BodyDecoder:
    """JSON to one struct.

    A body with only known fields, which is the usual one, is decoded once.  Of another one the unknown fields are
    looked at: those of features that are not there are refused by name, any other is logged once and ignored.
    """

    def __init__(self, kind: type[msgspec.Struct], refused: Refused) -> None:
        self.kind = kind
        self._refused = refused
        self._told: set[str] = set()
        self._known = {field.encode_name for field in msgspec.structs.fields(kind)}
        strict = msgspec.defstruct(kind.__name__, (), bases=(kind,), module=kind.__module__, forbid_unknown_fields=True)
        self._strict = msgspec.json.Decoder(strict).decode
        self._lenient = msgspec.json.Decoder(kind).decode

    def __call__(self, body: bytes) -> Any:
        """Return the struct.  Raises HttpError that names the field."""
        try:
            return self._strict(body)
        except msgspec.ValidationError:
            pass
        except (ValueError, RecursionError) as error:
            raise _malformed(error, body) from None
        try:
            self._look_at_others(body)
            return self._lenient(body)
        except msgspec.ValidationError as error:
            raise _invalid(error) from None
        except (ValueError, RecursionError) as error:
            raise _malformed(error, body) from None

    def _look_at_others(self, body: bytes) -> None:
        for name, raw in _names(body).items():
            if name in self._known:
                continue
            reason = self._refused(name, msgspec.json.decode(raw))
            if reason:
                raise HttpError(400, f"{name}: {reason}", name)
            if reason is None and name not in self._told and len(self._told) < _MOST_TOLD:
                self._told.add(name)
                hint = did_you_mean(name[:60], self._known)
                logger.warning("a request has the unknown field %r, which is ignored.%s", name[:60], hint)


def _invalid(error: msgspec.ValidationError) -> HttpError:
    """Turn the decoder's sentence about `$.a[0].b` into one that begins with the field."""
    text = str(error)
    found = _WHERE.search(text)
    param = found.group(1).lstrip(".") if found else ""
    reason = text[: found.start()] if found else text
    missing = _MISSING.search(reason)
    if missing:
        param = f"{param}.{missing.group(1)}" if param else missing.group(1)
        reason = "required, but missing"
    else:
        reason = reason[:1].lower() + reason[1:].replace("`", "")
    return HttpError(400, f"{param}: {reason}" if param else f"the body: {reason}", param or None)


def _malformed(error: Exception, body: bytes) -> HttpError:
    if not body:
        return HttpError(400, "the body is empty; send a JSON object")
    if isinstance(error, RecursionError):
        return HttpError(400, "the body is nested too deeply")
    reason = str(error) if isinstance(error, msgspec.DecodeError) else "it is not UTF-8"
    return HttpError(400, f"the body is not JSON: {reason}")
