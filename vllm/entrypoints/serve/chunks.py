"""The chunks of a stream: what is the same in all of them is encoded once, and all streams of chunks are made here."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

import msgspec

from vllm.entrypoints.serve.context import Call
from vllm.entrypoints.serve.generation import Count, deltas
from vllm.entrypoints.serve.http import DONE, encode
from vllm.entrypoints.serve.protocol import SamplingRequest, Usage
from vllm.messages import EngineRequest
from vllm.outputs import RequestOutput

Choices = Callable[[int, RequestOutput], Sequence[msgspec.Struct]]
"""Makes choices of what is new of a request, given its position and its output."""


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


async def stream_chunks(
    call: Call,
    requests: Sequence[EngineRequest],
    chunks: Chunks,
    choices: Choices,
    seen: Callable[[RequestOutput], RequestOutput] | None = None,
) -> AsyncGenerator[bytes, None]:
    """Run requests, and yield the events of the answer.  `seen`: what of an output is to be counted and shown."""
    count = Count(call.settings.enable_prompt_tokens_details)
    begun: set[int] = set()
    running = len(requests)
    async with aclosing(deltas(call.engine, requests)) as news:
        async for position, outputs in news:
            if position not in begun:
                begun.add(position)
                count.begin(outputs[0])
            shown = b""
            for output in outputs if seen is None else map(seen, outputs):
                count.add(output)
                running -= output.finished
                shown += chunks.choices(choices(position, output), count.usage())
            if not running:
                shown += chunks.end(count.usage())
            if shown:
                yield shown
    if call.facts is not None:
        call.facts["completion_tokens"] = count.completion
