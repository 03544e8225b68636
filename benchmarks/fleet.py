"""The engines of a run as child processes, of which one computes at a time.

    loading ─▶ warmed up ─▶ waiting ⇄ working      waiting is being stopped (SIGSTOP)

Whoever waits is stopped by a signal: a thread pool that spins for work would otherwise take a core from whoever is
measured.  As many engines as memory has room for stay loaded; to make room, those go first that load fastest.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import checkpoints
from benchmarks.conversation import Child, EngineFailed, NotLoaded
from benchmarks.engines import GIB, Engine
from benchmarks.floor import cache_bytes
from benchmarks.processes import Memory, PeakMemory, available
from benchmarks.shapes import QWEN_HALF_BILLION
from benchmarks.workloads import WARM_UP_ROUND, Request, start_up, workloads

MAX_LEN = 4096
MAX_REQUESTS = 64
KV_TOKENS = 32768  # 0.4 GB at 16 bits; the mix needs 22,737 of them
SMALL_KV_BYTES = 200_000_000  # for start-up and peak memory
LOAD_SECONDS = 600
RUN_SECONDS = 1200
RESERVE = 3 * GIB


@dataclass(slots=True)
class Loaded:
    """An engine that is ready."""

    engine: Engine
    child: Child
    load_seconds: float


class Fleet:
    """Starts engines when they are needed, and keeps all but one of them still."""

    def __init__(self, work: Path, cores: list[int]) -> None:
        self.work = work.absolute()
        self.cores = cores
        self._loaded: dict[str, Loaded] = {}

    def wake(self, engine: Engine) -> None:
        """Have an engine loaded, and answer a short request.

        It stood still for minutes, in which the system may have taken pages of mapped files from it.  Raises NotLoaded
        if it does not even load, EngineFailed if it breaks.
        """
        self._ready(engine)
        self.run(engine, start_up())

    def run(self, engine: Engine, requests: Sequence[Request]) -> dict[str, Any]:
        """Have an engine answer requests; return its readings.  Raises EngineFailed, and then it is not loaded."""
        child = self._ready(engine)
        child.resume()
        try:
            reply = child.ask(_run_message(requests), RUN_SECONDS)
            child.pause()
            return reply
        except EngineFailed:
            self.drop(engine)
            raise

    def start(self, engine: Engine) -> float:
        """Return the seconds from the start of a fresh process to its first token, with the checkpoint in memory."""
        self._make_room(engine)
        _read_through(checkpoints.path_of(engine.checkpoint, self.work))
        child = self._start(engine)
        try:
            child.send(self._load_message(engine, SMALL_KV_BYTES // cache_bytes(QWEN_HALF_BILLION)))
            child.send(_run_message(start_up()))
            child.receive(LOAD_SECONDS)
            child.receive(RUN_SECONDS)
            return time.perf_counter() - child.started
        finally:
            child.stop()

    def peak_memory(self, engine: Engine, requests: Sequence[Request]) -> Memory:
        """Return the most memory that a fresh process takes while it loads and answers requests."""
        self._make_room(engine)
        child = self._start(engine)
        try:
            with PeakMemory(child.session) as watch:
                child.ask(self._load_message(engine, SMALL_KV_BYTES // cache_bytes(QWEN_HALF_BILLION)), LOAD_SECONDS)
                child.ask(_run_message(requests), RUN_SECONDS)
            return watch.peak
        finally:
            child.stop()

    def drop(self, engine: Engine) -> None:
        """Stop an engine if it is loaded."""
        if loaded := self._loaded.pop(engine.name, None):
            loaded.child.stop()

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        for loaded in list(self._loaded.values()):
            self.drop(loaded.engine)

    def _ready(self, engine: Engine) -> Child:
        """Return an engine's child, loaded, warmed up and still."""
        if loaded := self._loaded.get(engine.name):
            return loaded.child
        self._make_room(engine)
        child = self._start(engine)
        try:
            reply = child.ask(self._load_message(engine, KV_TOKENS), LOAD_SECONDS)
            for workload in workloads(quick=True, round_number=WARM_UP_ROUND).values():
                child.ask(_run_message(workload.requests), RUN_SECONDS)
        except EngineFailed as error:
            child.stop()
            raise NotLoaded(str(error)) from None
        except BaseException:
            child.stop()
            raise
        child.pause()
        self._loaded[engine.name] = Loaded(engine, child, reply["seconds"])
        print(f"  {engine.name} loaded in {reply['seconds']:.1f} s", file=sys.stderr, flush=True)
        return child

    def _make_room(self, engine: Engine) -> None:
        waiting = sorted(self._loaded.values(), key=lambda loaded: loaded.load_seconds)
        while waiting and available() < engine.memory + RESERVE:
            self.drop(waiting.pop(0).engine)

    def _start(self, engine: Engine) -> Child:
        logs = self.work / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        return Child(
            engine.command(self.work), engine.variables_for(self.work, self.cores), logs / f"{engine.name}.log"
        )

    def _load_message(self, engine: Engine, kv_tokens: int) -> dict[str, Any]:
        options = {
            "threads": len(self.cores),
            "max_len": MAX_LEN,
            "max_requests": MAX_REQUESTS,
            "kv_tokens": kv_tokens,
            "kv_bytes": kv_tokens * cache_bytes(QWEN_HALF_BILLION),
            "engine": engine.settings,
        }
        model = checkpoints.path_of(engine.checkpoint, self.work)
        return {"do": "load", "model": str(model), "options": options}


def _run_message(requests: Sequence[Request]) -> dict[str, Any]:
    return {"do": "run", "requests": [[request.prompt, request.num_output] for request in requests]}


def _read_through(path: Path) -> None:
    """Have a checkpoint's bytes in the system's page cache."""
    for file in sorted(path.glob("*.safetensors")) if path.is_dir() else [path]:
        with file.open("rb", buffering=0) as source:
            while source.read(1 << 24):
                pass
