"""What the front and the engine process say to each other, over one socket pair.

    front ── Load, Add, Abort, Finish, ResetPrefixCache, Stop ──▶ engine
    front ◀── Ready | Failed, then News, Refused ── engine

A message is four bytes of length (little endian), then msgpack.  Nothing is pickled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from vllm.config import EngineArgs
from vllm.errors import ConfigError
from vllm.messages import EngineRequest, EngineStats, Event

_T = TypeVar("_T")
HEADER = 4


class Load(Struct, tag=0, array_like=True):
    """Load a model.  The first message."""

    options: dict[str, Any]  # fields of EngineArgs
    free_bytes: int | None = None  # see CacheConfig


class Add(Struct, tag=1, array_like=True):
    request: EngineRequest


class Abort(Struct, tag=2, array_like=True):
    request_ids: list[str]


class Finish(Struct, tag=3, array_like=True):
    """One sequence met a stop string."""

    request_id: str
    index: int


class ResetPrefixCache(Struct, tag=4, array_like=True):
    """Forget cached prompt beginnings."""


class Stop(Struct, tag=5, array_like=True):
    """Exit."""


class Ready(Struct, tag=0, array_like=True):
    """The model is loaded."""

    memory: str  # the plan in words
    num_cache_tokens: int
    num_blocks: int
    num_bytes: int  # that it may take
    free_bytes: int  # before it was loaded
    seconds: float


class Failed(Struct, tag=1, array_like=True):
    """The model can't be loaded; the process ends."""

    kind: str  # config, model, or fault: whose it is
    message: str


class News(Struct, tag=2, array_like=True):
    """What a step brought."""

    events: list[Event]
    stats: EngineStats


class Refused(Struct, tag=3, array_like=True):
    """A request that the scheduler does not take."""

    request_id: str
    message: str
    param: str | None


ToEngine = Load | Add | Abort | Finish | ResetPrefixCache | Stop
ToFront = Ready | Failed | News | Refused

_encode = msgspec.msgpack.Encoder().encode_into


def framed(message: ToEngine | ToFront) -> bytearray:
    """Return a message as it goes over the socket."""
    frame = bytearray(HEADER)
    _encode(message, frame, HEADER)
    frame[:HEADER] = (len(frame) - HEADER).to_bytes(HEADER, "little")
    return frame


class Frames:
    """Puts together what comes in pieces."""

    def __init__(self, kind: Any) -> None:
        """`kind` is the union of messages that come: ToEngine or ToFront."""
        self._decode = msgspec.msgpack.Decoder(kind).decode
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        """Take bytes; return the messages that are whole now."""
        self._buffer += data
        at = 0
        while len(self._buffer) - at >= HEADER:
            end = at + HEADER + int.from_bytes(self._buffer[at : at + HEADER], "little")
            if end > len(self._buffer):
                break
            yield self._decode(memoryview(self._buffer)[at + HEADER : end])
            at = end
        if at:
            self._buffer = self._buffer[at:]


def options_of(args: EngineArgs) -> dict[str, Any]:
    """Return the arguments as a message can have them.  Raises ConfigError for a callable."""
    if callable(args.hf_overrides):
        raise ConfigError("hf_overrides must be a mapping where the engine runs in a process of its own")
    return {field.name: getattr(args, field.name) for field in dataclasses.fields(args)}
