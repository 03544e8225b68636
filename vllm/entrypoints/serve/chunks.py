"""The chunks of a stream: what is the same in all of them is encoded once."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from vllm.entrypoints.serve.http import DONE, encode
from vllm.entrypoints.serve.protocol import SamplingRequest, Usage


class Chunks:
    """Writes the chunks of one answer, one choice each."""

    def __init__(self, kind: str, name: str, created: int, model: str, body: SamplingRequest, forced: bool) -> None:
        """`kind` is the type of object; `forced`: end with the usage, asked for or not."""
        start = encode({"id": name, "object": kind, "created": created, "model": model})
        self._head = b"data: " + start[:-1] + b',"choices":['
        self._ends_with_usage = forced or body.wants_usage
        self._has_usage = body.wants_running_usage
        self._tail = b'],"usage":null}\n\n' if self._ends_with_usage else b"]}\n\n"

    def choices(self, choices: Sequence[msgspec.Struct], usage: Usage) -> bytes:
        """Return a chunk per choice."""
        tail = b'],"usage":' + encode(usage) + b"}\n\n" if self._has_usage else self._tail
        return b"".join([self._head + encode(choice) + tail for choice in choices])

    def end(self, usage: Usage) -> bytes:
        """Return what comes after the last choice."""
        if not self._ends_with_usage:
            return DONE
        return self._head + b'],"usage":' + encode(usage) + b"}\n\n" + DONE
