"""`vllm bench startup`: how long from nothing to a first token?  Each time in a new process."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from typing import Any

from vllm.config import EngineArgs
from vllm.entrypoints.bench.report import add_report_options, check_writable, table, write_json
from vllm.entrypoints.cli.options import add_engine_options, add_model, engine_options
from vllm.errors import ConfigError, EngineDeadError

EPILOG = "Files are as warm as the system's cache keeps them: the first round of all may read from the disk."

_PHASES = {
    "import": "import, s",
    "load": "load the model, s",
    "first_token": "first token, s",
    "total": "in all, with Python's start, s",
}
_CHILD = "from vllm.entrypoints.bench.startup import child; child()"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--num-iters", type=int, default=3, help="processes that are started (default: %(default)s)")
    add_report_options(parser)
    add_engine_options(parser)


def run(options: argparse.Namespace) -> None:
    if options.num_iters < 1:
        raise ConfigError(f"--num-iters must be at least 1, got {options.num_iters}")
    engine = engine_options(options)
    check_writable(options.result_json)
    EngineArgs(**engine)  # a mistake shows before anything is started
    from tqdm import tqdm

    rounds = [measure(engine) for _ in tqdm(range(options.num_iters), desc="Processes", disable=options.disable_tqdm)]
    values = {phase: [one[phase] for one in rounds] for phase in _PHASES}
    rows = [
        [title, f"{statistics.median(values[phase]):.3f}", f"{min(values[phase]):.3f}", f"{max(values[phase]):.3f}"]
        for phase, title in _PHASES.items()
    ]
    print(table(["", "median", "least", "most"], rows))
    write_json(options.result_json, {f"{phase}_s": times for phase, times in values.items()})


def measure(engine: dict[str, Any]) -> dict[str, float]:
    """Start a process that makes one token; return its seconds by phase.  Raises EngineDeadError if it fails."""
    start = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        output, errors = child.communicate(json.dumps(engine))
    finally:
        child.kill()
        child.wait()
    if child.returncode != 0:
        last = (errors.strip().splitlines() or [f"exit status {child.returncode}"])[-1]
        raise EngineDeadError(f"the process that was to start failed: {last}")
    found = json.loads(output.strip().splitlines()[-1])
    # The monotonic clock of a machine is the same for all its processes.
    return {**found["phases"], "total": found["done"] - start}


def child() -> None:
    """What the process does: load, make a token, say when it was there."""
    engine = json.load(sys.stdin)
    begin = time.monotonic()
    from vllm import LLM, SamplingParams

    imported = time.monotonic()
    llm = LLM(**engine)
    loaded = time.monotonic()
    llm.generate("A", SamplingParams(max_tokens=1), use_tqdm=False)
    done = time.monotonic()
    phases = {"import": imported - begin, "load": loaded - imported, "first_token": done - loaded}
    print(json.dumps({"phases": phases, "done": done}))
    sys.stdout.flush()
    llm.close()
