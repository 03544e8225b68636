"""Our engine beside its peers: same checkpoints, same work, in turns.

    python -m benchmarks                       everything, five rounds, into .bench/results
    python -m benchmarks --quick               the machinery, in a few minutes
    python -m benchmarks --out benchmarks      the run whose figures are published

Peers are installed by `python -m benchmarks.environments` before; who is missing is named in the results.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from benchmarks import report
from benchmarks.engines import ENGINES
from benchmarks.rounds import MEMORY, START, Plan, run
from benchmarks.workloads import workloads

NICE_ROUNDS = 5
QUICK_ROUNDS = 2
PATIENCE = 75.0


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else NICE_ROUNDS)
    out = options.out or options.work / ("quick" if options.quick else "results")
    engines = [ENGINES[name] for name in options.engines]
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))  # engines that wait are stopped: nobody else would end them
    plan = Plan(engines, options.workloads, rounds, options.quick, options.work, options.lock, options.patience)
    run(plan, out / report.RECORD)
    print(report.write(out))
    print(f"written to {os.path.relpath(out)}/")


def _parser() -> argparse.ArgumentParser:
    every = [*workloads(), START, MEMORY]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--engines", type=_names(ENGINES), default=list(ENGINES), help=f"some of {','.join(ENGINES)}; by default all"
    )
    parser.add_argument(
        "--workloads", type=_names(every), default=every, help=f"some of {','.join(every)}; by default all"
    )
    parser.add_argument("--rounds", type=_positive, help=f"by default {NICE_ROUNDS}, or {QUICK_ROUNDS} with --quick")
    parser.add_argument("--out", type=Path, help="folder for results.json, RESULTS.md and results.svg")
    parser.add_argument("--work", type=Path, default=Path(".bench"), help="folder of environments and checkpoints")
    parser.add_argument("--lock", type=Path, help="hold this file's lock during each turn, as flock(1) does for others")
    parser.add_argument(
        "--patience",
        type=float,
        default=PATIENCE,
        help="seconds; who takes longer for a workload has one turn at it (%(default)s)",
    )
    parser.add_argument("--quick", action="store_true", help="a few tokens per workload, to try the machinery")
    return parser


def _names(known: Collection[str]) -> Callable[[str], list[str]]:
    """A reader of known names with commas between them."""

    def read(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)} is not among {', '.join(known)}")
        return names

    return read


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number of at least 1")
    return int(text)


if __name__ == "__main__":
    main()
