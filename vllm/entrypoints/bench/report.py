"""What a benchmark says at its end: a table, and files if they are wanted."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vllm.entrypoints.bench.measures import TITLES
from vllm.errors import ConfigError


def add_report_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("results")
    group.add_argument("--result-json", "--output-json", metavar="FILE", help="write the figures as JSON")
    group.add_argument(
        "--percentiles", "--metric-percentiles", type=percentiles, default=[99.0], help="as 50,90,99 (default: 99)"
    )
    group.add_argument("--disable-tqdm", action="store_true", help="show no progress")


def percentiles(text: str) -> list[float]:
    """Turn "50,90,99.9" into numbers."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers, as 50,90,99") from None
    if not all(0.0 <= share <= 100.0 for share in found):
        raise argparse.ArgumentTypeError(f"{text!r}: percentiles are in [0, 100]")
    return found


def check_writable(*paths: str | None) -> None:
    """Raise ConfigError, before anything is measured, for a file whose folder isn't there or can't be written to."""
    for path in paths:
        if path is None:
            continue
        folder = Path(path).expanduser().resolve().parent
        if not folder.is_dir():
            raise ConfigError(f"{path} cannot be written: {folder} is no folder; make it first")


def write_json(path: str | None, found: dict[str, Any]) -> None:
    if path is None:
        return
    try:
        Path(path).expanduser().write_text(json.dumps(found, indent=2) + "\n")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None


def latency_table(found: dict[str, Any], shares: Sequence[float]) -> str:
    """Return the measures of a server as a table."""
    columns = ["mean", "median", *(f"p{share:g}" for share in shares if share != 50.0)]
    rows = [[TITLES[name], *(_shown(found[f"{column}_{name}_ms"]) for column in columns)] for name in TITLES]
    return table(["", *columns], rows)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return rows of text in columns: the first to the left, the others to the right."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    )


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:,.2f}"
