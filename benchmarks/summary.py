"""A run's record as figures: medians, floors and ratios over its rounds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.floor import Roof, floor
from benchmarks.measures import Readings, measure, median, ratio
from benchmarks.shapes import PRECISIONS, Shape
from benchmarks.workloads import workloads


@dataclass(frozen=True, slots=True)
class Series:
    """One measure of one engine, by round."""

    values: dict[int, float]
    floors: dict[int, float]
    """Empty where there is no roof."""

    @property
    def median(self) -> float:
        return median(list(self.values.values()))

    @property
    def lowest(self) -> float:
        return min(self.values.values())

    @property
    def highest(self) -> float:
        return max(self.values.values())


class Summary:
    """Figures of a record by workload, measure and engine."""

    def __init__(self, record: Mapping[str, Any]) -> None:
        self.record = record
        self.engines: list[str] = list(record["engines"])
        self._series: dict[tuple[str, str, str], Series] = {}
        self._collect()

    def measures(self) -> list[tuple[str, str]]:
        """The pairs of workload and measure that somebody was measured in."""
        pairs = {(workload, name) for workload, name, _ in self._series}
        return sorted(pairs, key=lambda pair: (pair[0], pair[1] != "first_token"))

    def series(self, workload: str, name: str, engine: str) -> Series | None:
        return self._series.get((workload, name, engine))

    def ratio(self, workload: str, name: str, ours: str, peer: str) -> float | None:
        """How many times as fast `ours` is, the median over the rounds that both were measured in."""
        mine, theirs = self.series(workload, name, ours), self.series(workload, name, peer)
        if mine is None or theirs is None:
            return None
        return _median_ratio(name, mine.values, theirs.values)

    def share(self, workload: str, name: str, engine: str) -> float | None:
        """The share of the floor that is reached, 1 being all of it, the median over rounds."""
        found = self.series(workload, name, engine)
        return _median_ratio(name, found.values, found.floors) if found else None

    def start_up(self, engine: str) -> float | None:
        """Median seconds to the first token."""
        seconds = [entry["seconds"] for entry in self.record["starts"] if entry["engine"] == engine]
        return median(seconds) if seconds else None

    def memory(self, engine: str) -> dict[str, int] | None:
        """The peak in bytes: rss, pss, anonymous."""
        return self.record["memory"].get(engine)

    def same_tokens(self, engine: str, reference: str) -> tuple[int, int] | None:
        """How many tokens of W1 were the same as the reference's before the first that was not, and of how many.

        Summed over rounds.
        """
        found, wanted = self._tokens(engine), self._tokens(reference)
        rounds = sorted(found.keys() & wanted.keys())
        if not rounds:
            return None
        same = sum(_num_same(found[number], wanted[number]) for number in rounds)
        return same, sum(len(wanted[number]) for number in rounds)

    def roofs(self) -> list[Roof]:
        """Every roof that was measured."""
        pairs = [entry["roof"] for entry in self.record["measurements"]]
        return [Roof(**each) for pair in pairs for each in pair if each is not None]

    def _collect(self) -> None:
        shape = Shape(**self.record["shape"])
        values: dict[tuple[str, str, str], dict[int, float]] = defaultdict(dict)
        floors: dict[tuple[str, str, str], dict[int, float]] = defaultdict(dict)
        for entry in self.record["measurements"]:
            number, engine = entry["round"], entry["engine"]
            workload = workloads(self.record["quick"], number)[entry["workload"]]
            precision = PRECISIONS[self.record["engines"][engine]["precision"]]
            for name in workload.measures:
                key = (workload.name, name, engine)
                values[key][number] = measure(name, Readings.from_reply(entry["readings"]))
                roof = _mean(entry["roof"])
                best = floor(workload, name, shape, precision, roof) if roof else None
                if best is not None:
                    floors[key][number] = best
        self._series = {key: Series(values[key], floors[key]) for key in values}

    def _tokens(self, engine: str) -> dict[int, list[int]]:
        entries = (entry for entry in self.record["measurements"] if entry["engine"] == engine)
        return {entry["round"]: entry["readings"]["tokens"] for entry in entries if entry["workload"] == "W1"}


def _median_ratio(name: str, ours: Mapping[int, float], theirs: Mapping[int, float]) -> float | None:
    rounds = sorted(ours.keys() & theirs.keys())
    if not rounds:
        return None
    return ratio(name, [ours[number] for number in rounds], [theirs[number] for number in rounds])


def _mean(roofs: Sequence[Mapping[str, float] | None]) -> Roof | None:
    """The roof over a measurement: between the one before it and the one after."""
    known = [each for each in roofs if each is not None]
    if not known:
        return None
    return Roof(**{name: sum(each[name] for each in known) / len(known) for name in ("read", "bf16", "int8")})


def _num_same(left: Sequence[int], right: Sequence[int]) -> int:
    for place, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return place
    return min(len(left), len(right))
