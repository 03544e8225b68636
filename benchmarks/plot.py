"""The shares of the floor as bars, one group per measure, written as SVG by hand."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from benchmarks.measures import TITLES
from benchmarks.summary import Summary

COLORS = {"bf16": ("#1b5e9c", "#9fc3e3"), "int8": ("#2b7a3d", "#a9d6b3"), "int4": ("#a3490f", "#f0bf9a")}
"""By precision: ours, and the peers'."""
LABELS, BARS, RIGHT = 170, 520, 90
BAR, GAP, TITLE, TOP = 14, 4, 34, 56
WIDTH = LABELS + BARS + RIGHT


def draw(summary: Summary) -> str:
    """Return the plot; where there is no floor, it says so."""
    body: list[str] = []
    y = TOP
    for workload, name in summary.measures():
        shares = {engine: summary.share(workload, name, engine) for engine in summary.engines}
        known = {engine: share for engine, share in shares.items() if share is not None}
        if known:
            body.append(_text(LABELS, y + 20, f"{workload} {TITLES[name].split(',')[0]}", "start", 13, bold=True))
            y += TITLE
            for engine, share in known.items():
                body += _bar(summary, engine, share, y)
                y += BAR + GAP
    if not body:
        body.append(_text(LABELS, y, "no roof was measured, so there is no floor", "start", 12))
        y += TITLE
    return "\n".join(_page(y + 10, body)) + "\n"


def _page(height: int, body: list[str]) -> Iterator[str]:
    yield f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif">'
    yield f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>'
    yield _text(LABELS, 22, "Share of the floor (1 is what the machine could do); this engine in dark", "start", 14)
    for tenth in range(0, 11, 2):
        x = LABELS + BARS * tenth // 10
        yield f'<line x1="{x}" y1="{TOP - 6}" x2="{x}" y2="{height - 8}" stroke="#dddddd"/>'
        yield _text(x, TOP - 12, f"{tenth / 10:.1f}", "middle", 11)
    yield from body
    yield "</svg>"


def _bar(summary: Summary, engine: str, share: float, y: int) -> Iterator[str]:
    facts = summary.record["engines"][engine]
    color = COLORS[facts["precision"]][0 if engine.startswith("ours") else 1]
    width = BARS * min(share, 1.08)
    yield _text(LABELS - 8, y + BAR - 3, f"{facts['title']}, {facts['precision']}", "end", 11)
    yield f'<rect x="{LABELS}" y="{y}" width="{width:.1f}" height="{BAR}" fill="{color}"/>'
    yield _text(int(LABELS + width) + 5, y + BAR - 3, f"{share:.2f}", "start", 11)


def _text(x: int, y: int, text: str, anchor: str, size: int, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}" fill="#222222"{weight}>{escape(text)}</text>'
    )
