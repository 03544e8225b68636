"""The benchmark of a server as a picture: how measures are distributed, and the output over time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vllm.entrypoints.bench.load import Timing
from vllm.entrypoints.bench.measures import TITLES, series
from vllm.errors import ConfigError

_BINS = 60


def check_matplotlib() -> None:
    """Raise ConfigError, before anything is measured, if there is nothing to draw with."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigError('--plot needs matplotlib; install it with: pip install "vllm[bench]"') from None


def draw(path: str, timings: Sequence[Timing], title: str) -> None:
    """Write a PNG (or what the file's name ends in).  Raises ConfigError if it cannot be written."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(2, 2)
    values = series(timings)
    for name, where in zip(("ttft", "itl", "e2el"), axes.flat, strict=False):
        _distribution(where, TITLES[name], values[name])
    _over_time(axes.flat[3], timings)
    try:
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--plot: {path} cannot be written: {error}") from None


def _distribution(axes: Any, title: str, values: list[float]) -> None:
    """The share of values that are at most x."""
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.set_ylim(0, 1)
    if not values:
        axes.text(0.5, 0.5, "nothing to show", ha="center", transform=axes.transAxes)
        return
    ordered = sorted(values)
    axes.step(ordered, [(rank + 1) / len(ordered) for rank in range(len(ordered))], where="post", color="#1b5e9c")
    for share, style in ((0.5, ":"), (0.99, "--")):
        value = ordered[min(len(ordered) - 1, int(share * len(ordered)))]
        axes.axvline(value, color="#a3490f", linestyle=style, linewidth=1, label=f"p{share * 100:g}: {value:,.1f}")
    axes.legend(fontsize=8, loc="lower right")


def _over_time(axes: Any, timings: Sequence[Timing]) -> None:
    axes.set_title("pieces of text per second, over time in s", fontsize=10)
    axes.grid(alpha=0.3)
    begin = min(timing.start for timing in timings)
    stamps = [stamp - begin for timing in timings for stamp in timing.stamps]
    if not stamps:
        return
    width = max(stamps) / _BINS or 1.0
    counts = [0] * (_BINS + 1)
    for stamp in stamps:
        counts[int(stamp / width)] += 1
    axes.fill_between(
        [index * width for index in range(_BINS + 1)], [count / width for count in counts], step="post", alpha=0.6
    )
    axes.set_ylim(bottom=0)
