"""From clock readings to figures.

    ttft   time to first token: from sending a request to its first text
    tpot   time per output token: from the first text to the end, shared by the tokens after the first
    itl    inter-token latency: between two pieces of text of one answer
    e2el   end-to-end latency: from sending a request to the end of its answer

All in milliseconds.  Their names in results are those of the interface.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.entrypoints.bench.load import Timing

TITLES = {
    "ttft": "time to first token, ms",
    "tpot": "time per output token, ms",
    "itl": "inter-token latency, ms",
    "e2el": "end to end, ms",
}


def series(timings: Sequence[Timing]) -> dict[str, list[float]]:
    """Return each measure's values in milliseconds, from the requests that succeeded."""
    good = [timing for timing in timings if timing.error is None]
    return {
        "ttft": [1000 * (one.first - one.start) for one in good],
        "tpot": [1000 * (one.end - one.first) / (one.num_output - 1) for one in good if one.num_output > 1],
        "itl": [1000 * (b - a) for one in good for a, b in zip(one.stamps, one.stamps[1:], strict=False)],
        "e2el": [1000 * (one.end - one.start) for one in good],
    }


def figures(timings: Sequence[Timing], percentiles: Sequence[float] = (99.0,)) -> dict[str, Any]:
    """Return counts, rates and the measures' mean, median, standard deviation and percentiles."""
    good = [timing for timing in timings if timing.error is None]
    duration = max(one.end for one in timings) - min(one.start for one in timings)
    prompt, output = sum(one.num_prompt for one in good), sum(one.num_output for one in good)
    found: dict[str, Any] = {
        "duration": duration,
        "completed": len(good),
        "failed": len(timings) - len(good),
        "total_input_tokens": prompt,
        "total_output_tokens": output,
        "request_throughput": len(good) / duration,
        "output_throughput": output / duration,
        "total_token_throughput": (prompt + output) / duration,
    }
    for name, values in series(timings).items():
        found |= summary(f"{name}_ms", values, percentiles)
    return found


def summary(name: str, values: Sequence[float], percentiles: Sequence[float]) -> dict[str, float | None]:
    """Return mean, median, standard deviation and percentiles of values; None where there are none."""
    found: dict[str, float | None] = {
        f"mean_{name}": statistics.fmean(values) if values else None,
        f"median_{name}": statistics.median(values) if values else None,
        f"std_{name}": statistics.pstdev(values) if values else None,
    }
    for share in percentiles:
        found[f"p{share:g}_{name}"] = percentile(values, share) if values else None
    return found


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that `share` percent of the values do not exceed, between two of them in proportion.

    >>> percentile([1.0, 2.0, 3.0, 4.0, 5.0], 50)
    3.0
    >>> percentile([1.0, 2.0], 75)
    1.75
    """
    ordered = sorted(values)
    place = (len(ordered) - 1) * share / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)
