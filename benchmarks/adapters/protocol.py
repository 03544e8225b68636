"""The conversation with an engine in a process of its own: one line of JSON each way.

    {"do": "load", "model": path, "options": {...}}               {"ok": {"seconds": ..., ...}}
    {"do": "run", "requests": [[token ids, num_output], ...]}     {"ok": {"first": [...], "last": [...], ...}}
    {"do": "exit"}                                                {"ok": {}}, and the process ends

What goes wrong is answered with {"error": "..."} and the conversation goes on.  Engines print what they like: standard
output is kept for the conversation, and everything printed goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

Asked = tuple[list[int], int]
"""A prompt's token ids, and the number of tokens that must follow them."""


class Engine(Protocol):
    """What an adapter offers.  It has taken no memory and no time until `load`."""

    def load(self, model: str, options: dict[str, Any]) -> None:
        """Get ready.  Common options: threads, max_len (tokens of a prompt with its output), max_requests,
        kv_tokens (in the cache) and kv_bytes (what these take at 16 bits)."""

    def prepare(self, requests: Sequence[Asked]) -> None:
        """Do what helps with such requests and may be done before anybody waits.  Nothing of their content is used."""

    def run(self, requests: Sequence[Asked]) -> Clock:
        """Answer all requests, handed over at once, and note on the clock when tokens come."""

    def close(self) -> None:
        """Let go of everything."""


@dataclass
class Clock:
    """Seconds since the requests were handed over, which is when it is made."""

    num_requests: int
    first: list[float] = field(init=False)
    last: list[float] = field(init=False)
    counts: list[int] = field(init=False)
    tokens: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.first = [0.0] * self.num_requests
        self.last = [0.0] * self.num_requests
        self.counts = [0] * self.num_requests
        self._began = time.perf_counter()

    def saw(self, request: int, tokens: Sequence[int]) -> None:
        """Note that tokens of a request are there now."""
        now = round(time.perf_counter() - self._began, 6)
        if not self.counts[request]:
            self.first[request] = now
        self.last[request] = now
        self.counts[request] += len(tokens)
        if request == 0:
            self.tokens.extend(tokens)

    def check(self, requests: Sequence[Asked]) -> None:
        """Raise RuntimeError unless every request got exactly what it asked for."""
        wanted = [num_output for _, num_output in requests]
        if self.counts != wanted:
            raise RuntimeError(f"the engine made {self.counts} tokens where {wanted} were asked for")


def serve(engine: Engine) -> None:
    """Answer lines on standard input until told to exit, or until nobody is there any more."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    for line in sys.stdin:
        message = json.loads(line)
        try:
            reply: dict[str, Any] = {"ok": _answer(engine, message)}
        except Exception as error:
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(reply) + "\n")
        if message["do"] == "exit":
            break


def _answer(engine: Engine, message: dict[str, Any]) -> dict[str, Any]:
    match message["do"]:
        case "load":
            began = time.perf_counter()
            engine.load(message["model"], message["options"])
            return {"seconds": time.perf_counter() - began}
        case "run":
            requests = [(list(prompt), int(num_output)) for prompt, num_output in message["requests"]]
            engine.prepare(requests)
            clock = engine.run(requests)
            clock.check(requests)
            return asdict(clock)
        case "exit":
            engine.close()
            return {}
        case unknown:
            raise ValueError(f"{unknown!r} is nothing that can be asked; there are load, run and exit")
