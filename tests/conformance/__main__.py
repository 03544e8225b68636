"""Examine all architectures:  python -m tests.conformance [--write] [MODEL_TYPE …]

Each in a process of its own, so that one that crashes or hangs harms no other.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import signal
import sys
import time
import warnings
from dataclasses import asdict

from tests.conformance.era import FORMATS
from tests.conformance.page import write
from tests.conformance.published import MODELS
from tests.conformance.suite import WAYS, Outcome, examine

_SECONDS = 90


def main() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model_types", nargs="*")
    parser.add_argument("--impl", default="auto", choices=("auto", "vllm", "transformers"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where the engine computes")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", help="write what was found to a file")
    parser.add_argument("--write", action="store_true", help="write the table of docs/models.md")
    options = parser.parse_args()
    import torch
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    began = time.monotonic()
    names = options.model_types or [*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *FORMATS, *MODELS]
    outcomes = _all(names, options.impl, options.device, options.jobs)
    for outcome in outcomes:
        failed = [way for way in WAYS if not outcome.ways.get(way)]
        print(
            f"{outcome.architecture:40} {outcome.route:13} {outcome.worst:.0e} {'' if outcome.passed else failed} {outcome.reason}"
        )
    passed = sum(outcome.passed for outcome in outcomes)
    print(f"{passed} of {len(outcomes)} agree in every way, after {time.monotonic() - began:.0f} s")
    if options.write:
        write(names, outcomes)
    if options.json:
        with open(options.json, "w") as file:
            json.dump([asdict(outcome) for outcome in outcomes], file, indent=1)


def _all(names: list[str], impl: str, device: str, jobs: int) -> list[Outcome]:
    """Examine model types, a few at a time."""
    import vllm.entrypoints.llm  # imported once, for all

    assert vllm
    waiting, running, found = list(names), {}, {}
    while waiting or running:
        while waiting and len(running) < jobs:
            name = waiting.pop(0)
            read, write = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.close(read)
                _child(name, impl, device, write)
            os.close(write)
            running[pid] = (name, os.fdopen(read))
        pid, status = os.wait()
        name, pipe = running.pop(pid)
        text = pipe.read()
        found[name] = (
            Outcome(**json.loads(text)) if text else Outcome(name, reason=f"the process ended with status {status}")
        )
    return [found[name] for name in names]


def _child(name: str, impl: str, device: str, write: int) -> None:
    signal.alarm(_SECONDS)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(io.StringIO()):
        os.dup2(nowhere.fileno(), sys.stderr.fileno())
        outcome = examine(name, impl, device)
    with os.fdopen(write, "w") as pipe:
        pipe.write(json.dumps(asdict(outcome)))
    os._exit(0)


if __name__ == "__main__":
    main()
