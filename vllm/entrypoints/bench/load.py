"""Sends requests to a server at a rate, and reads the clock as their tokens come."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from vllm.entrypoints.bench.connections import Pool
from vllm.entrypoints.bench.samples import Sample
from vllm.entrypoints.sse import DONE, EventReader
from vllm.errors import VllmError


class Text(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class Choice(msgspec.Struct):
    text: str | None = None
    delta: Text | None = None

    @property
    def has_text(self) -> bool:
        delta = self.delta
        return bool(self.text or (delta and (delta.content or delta.reasoning or delta.reasoning_content)))


class Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int | None = None


class Chunk(msgspec.Struct):
    """An event, as far as it matters here."""

    choices: list[Choice] = []
    usage: Usage | None = None
    error: Any = None


@dataclass(slots=True)
class Timing:
    """One request: seconds on the monotonic clock."""

    start: float
    stamps: list[float] = field(default_factory=list)
    """When pieces of text came.  A piece is a token, or several that the server sent together."""
    end: float = 0.0
    num_prompt: int = 0
    num_output: int = 0
    error: str | None = None

    @property
    def first(self) -> float:
        """When the first text came; where there was none at all, when the answer ended."""
        return self.stamps[0] if self.stamps else self.end


@dataclass(frozen=True, slots=True)
class Plan:
    """How to ask."""

    endpoint: str
    model: str
    rate: float
    """Requests per second; inf: all at once."""
    burstiness: float
    """1: a Poisson process; less: more in bursts; more: more evenly."""
    max_concurrency: int | None
    seed: int
    body: dict[str, Any]
    """Fields that every request has."""

    @property
    def is_chat(self) -> bool:
        return self.endpoint.rstrip("/").endswith("/chat/completions")


async def send_all(pool: Pool, samples: list[Sample], plan: Plan, done: Callable[[], None]) -> list[Timing]:
    """Send every sample when its time has come; return their timings in order.  `done` is called after each."""
    turns = asyncio.Semaphore(plan.max_concurrency or len(samples) or 1)
    bodies = [encode(sample, plan) for sample in samples]  # beforehand: it takes time, which isn't the server's

    async def send(sample: Sample, body: bytes) -> Timing:
        async with turns:
            timing = await send_one(pool, plan.endpoint, sample, body)
        done()
        return timing

    begin = time.monotonic()
    tasks = []
    for sample, body, moment in zip(samples, bodies, arrivals(len(samples), plan), strict=True):
        delay = begin + moment - time.monotonic()
        if delay > 0:
            await asyncio.sleep(delay)
        tasks.append(asyncio.create_task(send(sample, body)))
    return list(await asyncio.gather(*tasks))


def arrivals(count: int, plan: Plan) -> Iterator[float]:
    """Give the seconds after the start at which requests are sent.  Their mean distance is 1 / rate."""
    if plan.rate == float("inf"):
        yield from [0.0] * count
        return
    draw = random.Random(plan.seed)
    moment = 0.0
    for _ in range(count):
        yield moment
        moment += draw.gammavariate(plan.burstiness, 1.0 / (plan.rate * plan.burstiness))


def encode(sample: Sample, plan: Plan) -> bytes:
    """Return the body of a sample's request."""
    body: dict[str, Any] = {"model": plan.model, "stream": True, "stream_options": {"include_usage": True}}
    if plan.is_chat:
        body["messages"] = sample.messages or [{"role": "user", "content": sample.prompt}]
    else:
        body["prompt"] = sample.prompt
    if sample.max_tokens is not None:
        body["max_tokens"] = sample.max_tokens
    return json.dumps(body | plan.body).encode()


async def send_one(pool: Pool, endpoint: str, sample: Sample, body: bytes) -> Timing:
    """Send one request.  Whatever goes wrong is in its timing."""
    timing = Timing(time.monotonic(), num_prompt=sample.num_prompt)
    answer = _Answer(timing)
    try:
        status = await pool.post(endpoint, body, answer.take)
        if status != 200:
            timing.error = answer.refusal(status)
        elif not answer.is_done and timing.error is None:
            timing.error = "the answer ended without [DONE]"
    except TimeoutError:
        timing.error = "timed out"
    except (OSError, VllmError, msgspec.MsgspecError) as error:
        timing.error = str(error) or type(error).__name__
    timing.end = time.monotonic()
    if not timing.num_output:
        timing.num_output = len(timing.stamps)  # a server that doesn't count
    return timing


class _Answer:
    """Reads events, whatever pieces they come in.  An error's body is no event, and is kept to be shown."""

    def __init__(self, timing: Timing) -> None:
        self.timing = timing
        self.is_done = False
        self._events = EventReader()
        self._decoder = msgspec.json.Decoder(Chunk)
        self._beginning = b""

    def take(self, piece: bytes) -> None:
        now = time.monotonic()
        if len(self._beginning) < 2000:
            self._beginning += piece[:2000]
        for data in self._events.feed(piece):
            if data == DONE:
                self.is_done = True
                continue
            chunk = self._decoder.decode(data)
            if chunk.error is not None:
                self.timing.error = _message(chunk.error)
            if any(choice.has_text for choice in chunk.choices):
                self.timing.stamps.append(now)
            if chunk.usage is not None:
                self.timing.num_prompt = chunk.usage.prompt_tokens or self.timing.num_prompt
                self.timing.num_output = chunk.usage.completion_tokens or 0

    def refusal(self, status: int) -> str:
        try:
            body = json.loads(self._beginning)
        except ValueError:
            body = None
        message = _message(body.get("error", body)) if isinstance(body, dict) else ""
        return f"{status}: {message or self._beginning[:200].decode(errors='replace')}"


def _message(error: Any) -> str:
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)
