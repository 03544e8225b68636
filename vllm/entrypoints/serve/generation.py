"""From requests to their outputs: prepared off the event loop, run side by side, counted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from msgspec import UNSET

from vllm.entrypoints.serve.context import Call
from vllm.entrypoints.serve.engine import Engine
from vllm.entrypoints.serve.errors import HttpError
from vllm.entrypoints.serve.protocol import Metrics, PromptTokensDetails, SamplingRequest, Usage
from vllm.entrypoints.serve.rendering import size_of
from vllm.errors import RequestError
from vllm.inputs.prepare import Params
from vllm.inputs.prompts import Prompt
from vllm.messages import NO_TOKEN_LEFT, EngineRequest
from vllm.outputs import RequestOutput

T = TypeVar("T")


async def prepare(call: Call, prompts: Sequence[Prompt], params: Params) -> list[EngineRequest]:
    """Return the engine's requests of a call.  Raises RequestError."""
    preparer = call.engine.preparer
    priority = priority_of(call)
    requests = await call.server.work(
        size_of(call, prompts), preparer.prepare, prompts, params, priority=[priority] * len(prompts)
    )
    if call.facts is not None:
        _note(call, requests)
    return requests


def priority_of(call: Call) -> int:
    """Return what the body says, else the header X-Vllm-Priority."""
    priority = call.body.priority
    if priority is None:
        given = call.header(b"x-vllm-priority") or "0"
        if not given.removeprefix("-").isdecimal() or len(given) > 18:
            raise HttpError(400, f"X-Vllm-Priority must be an integer, got {given[:40]!r}", "X-Vllm-Priority")
        return int(given)
    return priority


def _note(call: Call, requests: Sequence[EngineRequest]) -> None:
    """Fill in what is logged of a call."""
    assert call.facts is not None
    call.facts["prompt_tokens"] = sum(len(request.token_ids) for request in requests)
    call.facts["stream"] = bool(call.body.stream)
    params = requests[0].params
    call.facts |= {"n": params.n, "max_tokens": params.max_tokens, "temperature": params.temperature}
    if call.settings.max_log_len:
        shown = requests[0].prompt if requests[0].prompt is not None else str(requests[0].token_ids)
        call.facts["prompt"] = shown[: call.settings.max_log_len]


async def finals(engine: Engine, requests: Sequence[EngineRequest]) -> list[RequestOutput]:
    """Run requests to their ends and return their whole outputs, in order.  The first error ends all of them."""
    return await together([_final(engine, request) for request in requests])


async def together(runs: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Run side by side and return all results, in order.  The first error ends all of them."""
    if len(runs) == 1:
        return [await runs[0]]
    tasks = [asyncio.create_task(run) for run in runs]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await _cancel(tasks)


async def _final(engine: Engine, request: EngineRequest) -> RequestOutput:
    last: RequestOutput | None = None
    async with aclosing(engine.stream(request)) as stream:
        async for outputs in stream:
            last = outputs[-1]
    if last is None:
        raise HttpError(500, "the engine gave no output")
    return _sound(last)


async def deltas(
    engine: Engine, requests: Sequence[EngineRequest]
) -> AsyncGenerator[tuple[int, list[RequestOutput]], None]:
    """Run requests; yield what is new of one, with its position.  What has come together is yielded together."""
    if len(requests) == 1:
        async with aclosing(engine.stream(requests[0])) as stream:
            async for outputs in stream:
                yield 0, [_sound(output) for output in outputs]
        return
    queue: asyncio.Queue[tuple[int, list[RequestOutput] | Exception | None]] = asyncio.Queue()
    tasks = [asyncio.create_task(_pump(engine, request, i, queue)) for i, request in enumerate(requests)]
    try:
        running = len(tasks)
        while running:
            position, news = await queue.get()
            if isinstance(news, Exception):
                raise news
            if news is None:
                running -= 1
            else:
                yield position, [_sound(output) for output in news]
    finally:
        await _cancel(tasks)


async def _pump(engine: Engine, request: EngineRequest, position: int, queue: asyncio.Queue[Any]) -> None:
    try:
        async with aclosing(engine.stream(request)) as stream:
            async for outputs in stream:
                queue.put_nowait((position, outputs))
    except Exception as error:
        queue.put_nowait((position, error))
    else:
        queue.put_nowait((position, None))


async def _cancel(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _sound(output: RequestOutput) -> RequestOutput:
    """Return an output none of whose sequences failed."""
    for completion in output.outputs:
        if completion.finish_reason == "error" and completion.stop_reason == NO_TOKEN_LEFT:
            raise RequestError(NO_TOKEN_LEFT)
        if completion.finish_reason == "error":
            raise HttpError(500, f"the engine failed on this request: {completion.stop_reason}")
    return output


class Count:
    """Tokens of a call as they come."""

    __slots__ = ("_details", "cached", "completion", "prompt")

    def __init__(self, details: bool) -> None:
        """`details`: whether usage says how many tokens came from the cache."""
        self._details = details
        self.prompt = self.completion = self.cached = 0

    @classmethod
    def of(cls, outputs: Sequence[RequestOutput], details: bool) -> Count:
        count = cls(details)
        for output in outputs:
            count.begin(output)
            count.add(output)
        return count

    def begin(self, output: RequestOutput) -> None:
        """Count a request's prompt."""
        self.prompt += len(output.prompt_token_ids or ())
        self.cached += output.num_cached_tokens or 0

    def add(self, output: RequestOutput) -> None:
        """Count what is new of a request."""
        for completion in output.outputs:
            self.completion += len(completion.token_ids)

    def usage(self) -> Usage:
        details = PromptTokensDetails(self.cached) if self._details else UNSET
        return Usage(self.prompt, self.completion, self.prompt + self.completion, details)


def metrics_of(output: RequestOutput, num_tokens: int) -> Metrics:
    """Return how long a finished request took."""
    times = output.metrics
    first = None if times is None else times.first_token_time
    if times is None or first is None:
        return Metrics(None, None, None, None, None)
    last = times.finished_time if times.finished_time is not None else first
    spent = last - first
    scheduled = times.first_scheduled_time
    return Metrics(
        time_to_first_token_ms=1000 * (first - times.arrival_time),
        queue_time_ms=None if scheduled is None else 1000 * max(0.0, scheduled - times.arrival_time),
        generation_time_ms=1000 * spent,
        mean_itl_ms=1000 * spent / (num_tokens - 1) if num_tokens > 1 else None,
        tokens_per_second=(num_tokens - 1) / spent if spent > 0 and num_tokens > 1 else None,
    )


def check_stream(body: SamplingRequest) -> None:
    """Raise RequestError for fields that don't go together with how the answer is sent."""
    if body.stream_options is not None and not body.stream:
        raise RequestError("stream_options is only for stream=true", "stream_options")
    if body.stream and body.prompt_logprobs is not None:
        raise RequestError("prompt_logprobs can't be streamed; set stream=false", "prompt_logprobs")
    if body.cache_salt == "":
        raise RequestError("cache_salt is empty; leave it out or give a text", "cache_salt")
