"""What is asked of every engine: token ids from a fixed seed, greedy, never stopped by an end token.

W1 is one reader, W2 a crowd, W3 a long prompt, W4 a shared prefix, W5 a mix of lengths.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

IDS = range(100, 30000)
SEED = 20250101
WARM_UP_ROUND, START_UP_ROUND = -1, -2
"""Rounds that are not measured, so that what is measured begins with ids never seen before."""


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt and the number of tokens that must follow it."""

    prompt: list[int]
    num_output: int


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests that are handed over all at once."""

    name: str
    title: str
    requests: list[Request]
    measures: tuple[str, ...]
    """What is read off its clock readings; see `measures.py`."""
    shared: int = 0
    """Tokens that begin every prompt alike."""

    @property
    def num_prompt(self) -> int:
        return sum(len(request.prompt) for request in self.requests)

    @property
    def num_output(self) -> int:
        return sum(request.num_output for request in self.requests)


def workloads(quick: bool = False, round_number: int = 0) -> dict[str, Workload]:
    """Return the workloads by name.  The quick ones have a few tokens each, to try the machinery.

    Lengths are the same in every round; ids are not, so that no engine answers from what it remembers.
    """
    rng = random.Random(SEED + round_number)
    made = (_one_reader, _crowd, _long_prompt, _shared_prefix, _mixed)
    return {each.name: each for each in (make(rng, quick) for make in made)}


def start_up() -> list[Request]:
    """The first request of a fresh process: 16 tokens in, one out."""
    return [Request(_ids(random.Random(SEED + START_UP_ROUND), 16), 1)]


def _one_reader(rng: random.Random, quick: bool) -> Workload:
    requests = [Request(_ids(rng, 128), 8 if quick else 128)]
    return Workload("W1", "one prompt of 128 tokens, 128 out", requests, ("first_token", "decode_rate"))


def _crowd(rng: random.Random, quick: bool) -> Workload:
    requests = [Request(_ids(rng, 32 if quick else 128), 4 if quick else 64) for _ in range(4 if quick else 32)]
    return Workload("W2", "32 prompts of 128 tokens, 64 out, at once", requests, ("output_rate",))


def _long_prompt(rng: random.Random, quick: bool) -> Workload:
    requests = [Request(_ids(rng, 256 if quick else 2048), 4 if quick else 16)]
    return Workload("W3", "one prompt of 2048 tokens, 16 out", requests, ("first_token",))


def _shared_prefix(rng: random.Random, quick: bool) -> Workload:
    prefix = _ids(rng, 128 if quick else 1024)
    requests = [Request(prefix + _ids(rng, 32), 4 if quick else 32) for _ in range(3 if quick else 16)]
    title = "16 prompts sharing 1024 tokens, 32 of their own, 32 out"
    return Workload("W4", title, requests, ("total",), shared=len(prefix))


def _mixed(rng: random.Random, quick: bool) -> Workload:
    num_requests, longest, most = (4, 64, 8) if quick else (64, 512, 128)
    lengths = random.Random(SEED)
    requests = [
        Request(_ids(rng, lengths.randint(longest // 16, longest)), lengths.randint(most // 8, most))
        for _ in range(num_requests)
    ]
    return Workload("W5", "64 prompts of 32-512 tokens, 16-128 out, at once", requests, ("output_rate",))


def _ids(rng: random.Random, count: int) -> list[int]:
    return rng.choices(IDS, k=count)
