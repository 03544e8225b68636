"""The rounds of a run: in each, every engine has its turn at every workload, the order of turns moving on by one.

What is written down is every single measurement, with the roof before and after it; medians and ratios are for
`summary.py`.  An engine that refuses or breaks is written down with its words, and the others go on.
"""

from __future__ import annotations

import fcntl
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import checkpoints, machine, roof
from benchmarks.conversation import EngineFailed, NotLoaded
from benchmarks.engines import Engine
from benchmarks.fleet import Fleet
from benchmarks.shapes import QWEN_HALF_BILLION
from benchmarks.workloads import start_up, workloads

START, MEMORY = "start", "memory"
LOADING = "loading"
LOCK_GAP = 0.1  # seconds in which whoever waits for the lock wakes up and takes it


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run is to do."""

    engines: Sequence[Engine]
    workloads: Sequence[str]
    """Names of workloads, and START and MEMORY."""
    rounds: int
    quick: bool
    work: Path
    lock: Path | None = None
    """A file whose lock is held during each turn, so that other work on the machine can wait for its end."""
    patience: float = math.inf
    """Seconds: who takes longer for a workload has one turn at it."""


def run(plan: Plan, path: Path) -> dict[str, Any]:
    """Do it, and keep what is known so far in the file at `path`.  Returns what the file holds at the end."""
    record = _begin(plan)
    present = _present(plan, record)
    with ExitStack() as stack:
        meter = _meter(plan, record, stack)
        cores = machine.usable_cores()
        fleet = stack.enter_context(Fleet(plan.work, cores))
        turns = _Turns(record, fleet, meter, plan)
        for number in range(plan.rounds):
            order = [present[(number + place) % len(present)] for place in range(len(present))] if present else []
            for name in plan.workloads:
                print(f"round {number + 1} of {plan.rounds}: {name}", file=sys.stderr, flush=True)
                for engine in order:
                    turns.take(number, name, engine)
                _save(record, path)
    _save(record, path)
    return record


class _Turns:
    """One engine at one workload at a time, written into the record."""

    def __init__(self, record: dict[str, Any], fleet: Fleet, meter: roof.RoofMeter | None, plan: Plan) -> None:
        self.record, self.fleet, self.meter, self.plan = record, fleet, meter, plan
        self.done: set[tuple[str, str]] = set()
        """Pairs of workload and engine that get no further turn."""

    def take(self, number: int, name: str, engine: Engine) -> None:
        """Measure once, unless the engine failed at this before, or was too slow at it."""
        failed = self.record["failed"].get(engine.name, {})
        if LOADING in failed or name in failed or (name, engine.name) in self.done:
            return
        try:
            with _held(self.plan.lock):
                self._measure(number, name, engine)
        except EngineFailed as error:
            what = LOADING if isinstance(error, NotLoaded) else name
            self.record["failed"].setdefault(engine.name, {})[what] = str(error)
            print(f"  {engine.name} failed at {what}: {error}", file=sys.stderr, flush=True)

    def _measure(self, number: int, name: str, engine: Engine) -> None:
        asked = workloads(self.plan.quick, number)
        entry = {"round": number, "workload": name, "engine": engine.name}
        if name == MEMORY:
            peak = self.fleet.peak_memory(engine, start_up() + asked["W1"].requests)
            self.record["memory"][engine.name] = asdict(peak)
            self.done.add((name, engine.name))
            return
        if name == START:
            seconds = self.fleet.start(engine)
            self.record["starts"].append(entry | {"seconds": seconds})
            self._judge(seconds, name, engine)
            return
        self.fleet.wake(engine)
        before = self._roof()
        readings = self.fleet.run(engine, asked[name].requests)
        self.record["measurements"].append(entry | {"roof": [before, self._roof()], "readings": readings})
        self._judge(max(readings["last"]), name, engine)

    def _judge(self, took: float, name: str, engine: Engine) -> None:
        """Give no further turn to who tries the patience."""
        patience = self.plan.patience
        if took > patience:
            self.done.add((name, engine.name))
            what = f"{engine.name} took {took:.0f} s for {name}, more than {patience:.0f}: it had one turn at it"
            self.record["notes"].append(what)

    def _roof(self) -> dict[str, float] | None:
        return None if self.meter is None else asdict(self.meter.measure())


@contextmanager
def _held(path: Path | None) -> Iterator[None]:
    """Hold a file's lock; let others have it for a moment afterwards."""
    if path is None:
        yield
        return
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    time.sleep(LOCK_GAP)


def _begin(plan: Plan) -> dict[str, Any]:
    asked = workloads(plan.quick)
    return {
        "made": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "quick": plan.quick,
        "rounds": plan.rounds,
        "machine": machine.facts(),
        "shape": asdict(QWEN_HALF_BILLION),
        "workloads": {
            name: {
                "title": workload.title,
                "num_requests": len(workload.requests),
                "num_prompt": workload.num_prompt,
                "num_output": workload.num_output,
            }
            for name, workload in asked.items()
            if name in plan.workloads
        },
        "engines": {},
        "missing": {},
        "failed": {},
        "notes": [],
        "measurements": [],
        "starts": [],
        "memory": {},
    }


def _present(plan: Plan, record: dict[str, Any]) -> list[Engine]:
    """The engines that can take part, with their checkpoints made; the others are named in the record."""
    present = []
    for engine in plan.engines:
        if reason := engine.reason_missing(plan.work) or _make_checkpoint(engine, plan.work):
            record["missing"][engine.name] = reason
            print(f"{engine.name} is missing: {reason}", file=sys.stderr)
            continue
        fields = ("title", "precision", "checkpoint", "settings", "variables")
        facts = {name: getattr(engine, name) for name in fields}
        record["engines"][engine.name] = facts | {"versions": machine.versions(engine, plan.work)}
        present.append(engine)
    return present


def _make_checkpoint(engine: Engine, work: Path) -> str | None:
    """Make what an engine reads; return the reason if that failed."""
    try:
        checkpoints.make("safetensors", work, Path(sys.executable))
        if engine.checkpoint != "safetensors":
            checkpoints.make(engine.checkpoint, work, engine.python(work))
    except subprocess.CalledProcessError as error:
        return f"its {engine.checkpoint} checkpoint could not be made: {' '.join(error.cmd[1:])} failed"
    return None


def _meter(plan: Plan, record: dict[str, Any], stack: ExitStack) -> roof.RoofMeter | None:
    try:
        program = roof.build(plan.work)
    except roof.NoCompiler as error:
        record["notes"].append(str(error))
        print(error, file=sys.stderr)
        return None
    return stack.enter_context(roof.RoofMeter(program, len(machine.usable_cores())))


def _save(record: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(record) + "\n")
    part.rename(path)
