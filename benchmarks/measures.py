"""From clock readings to figures, and from figures to medians and ratios.

first_token   seconds until the first token of the only request            lower is better
decode_rate   tokens per second after it                                  higher is better
output_rate   tokens of all requests per second, prompts included          higher is better
total         seconds until the last token of all                          lower is better
start_up      seconds from starting the process to its first token         lower is better
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

RATES = ("decode_rate", "output_rate")
TITLES = {
    "first_token": "first token, ms",
    "decode_rate": "decode, tokens/s",
    "output_rate": "output, tokens/s",
    "total": "total, s",
    "start_up": "start to first token, s",
}


@dataclass(frozen=True, slots=True)
class Readings:
    """What an engine's clock said: seconds since all requests were handed over."""

    first: list[float]
    """Per request, when its first token was there."""
    last: list[float]
    counts: list[int]
    """Per request, its number of tokens."""
    tokens: list[int]
    """The first request's tokens."""

    @classmethod
    def from_reply(cls, reply: dict[str, Any]) -> Readings:
        return cls(reply["first"], reply["last"], reply["counts"], reply["tokens"])

    @property
    def total(self) -> float:
        return max(self.last)


def measure(name: str, readings: Readings) -> float:
    """Read one figure off the clock."""
    if name == "first_token":
        return readings.first[0]
    if name == "decode_rate":
        return (readings.counts[0] - 1) / (readings.last[0] - readings.first[0])
    if name == "output_rate":
        return sum(readings.counts) / readings.total
    if name == "total":
        return readings.total
    raise ValueError(f"{name!r} is no measure; there are {', '.join(TITLES)}")


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def ratio(name: str, ours: Sequence[float], theirs: Sequence[float]) -> float:
    """How many times as fast we are: the median over rounds of the ratio within a round."""
    pairs = zip(ours, theirs, strict=True)
    return statistics.median(mine / other if name in RATES else other / mine for mine, other in pairs)
