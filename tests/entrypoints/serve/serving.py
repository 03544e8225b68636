"""`vllm serve` in a process of its own, with its engine: what the tests that need the whole of it share."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import psutil

ROOT = Path(__file__).parents[3]
POISON = """
import sys
if "vllm.engine.process" in sys.orig_argv:
    from vllm.worker.runner import ModelRunner
    execute = ModelRunner.execute
    def poisoned(self, batch):
        known = {**self.tables.sequences, **{sequence.slot: sequence for sequence in batch.admitted}}
        for row in batch.rows:
            sequence = known[row.slot]
            if row.start > 20 and sequence.params.top_k == 666:
                raise ArithmeticError("this row cannot be computed")
        return execute(self, batch)
    ModelRunner.execute = poisoned
"""
"""A sitecustomize.py that has an engine fail in every step with a row of top_k=666."""


class Serving:
    """A server process with its engine."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.url = ""
        self.lines: list[str] = []

    def read_until(self, words: str) -> None:
        """Read the log until a line holds `words`; the rest is read on, or the pipe would fill up."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.search(r"listening at (http://[\d.:]+)", line):
                self.url = found[1]
            if words in line:
                break
        assert self.url, "".join(self.lines)
        threading.Thread(target=self.lines.extend, args=[self.process.stderr], daemon=True).start()

    @property
    def engine(self) -> psutil.Process:
        (child,) = psutil.Process(self.process.pid).children()
        return child

    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def figure(self, name: str) -> float:
        """A figure of /metrics."""
        page = httpx.get(f"{self.url}/metrics").text
        found = re.search(rf"^vllm:{name}{{[^}}]*}} (\S+)$", page, re.MULTILINE)
        assert found, f"{name} is not in\n{page}"
        return float(found[1])

    def until(self, name: str, value: float, seconds: float = 10.0) -> None:
        end = time.monotonic() + seconds
        while self.figure(name) != value:
            assert time.monotonic() < end, f"{name} is {self.figure(name)}, not {value}"
            time.sleep(0.01)

    def wait(self, seconds: float = 30.0) -> None:
        """Wait until requests are served."""
        end = time.monotonic() + seconds
        while httpx.get(f"{self.url}/health").status_code != 200:
            assert time.monotonic() < end
            time.sleep(0.02)


@contextmanager
def serving(*options: str, **variables: str) -> Iterator[Serving]:
    """A server that is ready."""
    with starting("--max-model-len", "1024", *options, **variables) as running:
        running.read_until("ready in")
        yield running


@contextmanager
def starting(*options: str, **variables: str) -> Iterator[Serving]:
    """A server that has just been started."""
    command = [sys.executable, "-m", "vllm.entrypoints.cli", "serve", "--host", "127.0.0.1", "--port", "0", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        yield Serving(process)
    finally:
        process.kill()
        process.communicate()
