"""What a server costs beside its model:  python -m benchmarks.server --out benchmarks

A model of two layers and width 64 takes next to no time, so that all that is left is the server's own.  Ours and vLLM's
take turns, each started anew in every round; `vllm bench serve` of this package asks both: prompts of 16 tokens,

    one token for each of 64 clients, 64 tokens for each of 64 clients, 64 tokens for one client,

drawn at temperature 1: greedily such a model says one thing for ever, whose text may not come before the end.

Written to server.json, which the report shows.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import checkpoints, environments
from benchmarks.engines import CLEARED, QUIET, ROOT
from benchmarks.shapes import Shape

SERVER = "server.json"
# Heads of 32: vLLM on processors has no smaller ones.
TINY = Shape(hidden=64, layers=2, heads=2, kv_heads=1, intermediate=128, vocab=3072, max_positions=2048)
TOKENIZER = ROOT / "vllm" / "assets" / "default_model"
PROMPT, ROUNDS, READY_SECONDS = 16, 3, 300
LOADS = {
    "requests": {"concurrency": 64, "output": 1, "count": 2048},
    "tokens": {"concurrency": 64, "output": 64, "count": 640},
    "single": {"concurrency": 1, "output": 64, "count": 32},
}
FIGURES = {
    "requests": ("request_throughput", "requests/s, 64 clients, one token each"),
    "tokens": ("output_throughput", "streamed tokens/s, 64 clients, 64 tokens each"),
    "single": ("mean_e2el_ms", "ms for 64 streamed tokens, one client"),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.server", description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path(".bench"), help="folder of environments and checkpoints")
    parser.add_argument("--out", type=Path, default=Path(".bench/results"), help=f"folder for {SERVER}")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    model = _tiny_model(options.work)
    found: dict[str, dict[str, list[float]]] = {}
    for number in range(options.rounds):
        for name in ("ours", "vllm"):
            if name == "vllm" and (reason := environments.reason_missing("vllm", options.work)):
                print(f"vllm is missing: {reason}", file=sys.stderr)
                continue
            with _serving(name, model, options.work) as port:
                for load, figure in _measure(port, options.work).items():
                    found.setdefault(name, {}).setdefault(load, []).append(figure)
            print(
                f"round {number + 1}, {name}: { ({load: round(v[-1], 2) for load, v in found[name].items()}) }",
                flush=True,
            )
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / SERVER).write_text(json.dumps(found, indent=1) + "\n")


def rows(found: Mapping[str, Mapping[str, list[float]]]) -> Iterator[tuple[str, str, str, str]]:
    """Return a row of the report's table per load: what it is, ours, vLLM's, how many times as good ours is."""
    for load, (figure, title) in FIGURES.items():
        ours, theirs = found.get("ours", {}).get(load), found.get("vllm", {}).get(load)
        ratio = ""
        if ours and theirs:
            pairs = zip(ours, theirs, strict=False)
            ratio = f"{statistics.median(b / a if figure.endswith('_ms') else a / b for a, b in pairs):.1f}×"
        yield title, _shown(ours), _shown(theirs), ratio


def _shown(values: list[float] | None) -> str:
    if not values:
        return ""
    value = statistics.median(values)
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def _tiny_model(work: Path) -> Path:
    folder = work.absolute() / "checkpoints" / "tiny"
    if not (folder / "model.safetensors").is_file():
        checkpoints.write_safetensors(TINY, folder)
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            shutil.copy(TOKENIZER / name, folder / name)
    return folder


@contextlib.contextmanager
def _serving(name: str, model: Path, work: Path) -> Iterator[int]:
    """Run a server until it has been measured.  Its log goes to <work>/logs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = [str(model), "--host", "127.0.0.1", "--port", str(port), "--max-model-len", "1024"]
    kept = {key: value for key, value in os.environ.items() if not key.startswith(CLEARED)} | QUIET
    if name == "ours":
        command, kept["PYTHONPATH"] = [sys.executable, "-m", "vllm.entrypoints.cli", "serve", *options], str(ROOT)
    else:
        program = environments.interpreter("vllm", work).parent / "vllm"
        command = [str(program), "serve", *options, "--enforce-eager"]
        kept["VLLM_CPU_KVCACHE_SPACE"] = "1"  # bound as it comes, one core computing: with both it was slower here
    logs = work.absolute() / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    with (logs / f"server-{name}.log").open("w") as log:
        process = subprocess.Popen(command, env=kept, cwd=logs, stdout=log, stderr=log, start_new_session=True)
        try:
            _wait_until_ready(process, port)
            yield port
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], port: int) -> None:
    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with status {process.returncode}; see its log")
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as reply,
        ):
            if reply.status == 200:
                return
        time.sleep(0.2)
    raise RuntimeError(f"the server was not ready after {READY_SECONDS} s; see its log")


def _measure(port: int, work: Path) -> dict[str, float]:
    found = {}
    for name, load in LOADS.items():
        out = work.absolute() / "logs" / "server-load.json"
        command = [
            *(sys.executable, "-m", "vllm.entrypoints.cli", "bench", "serve", "--url", f"http://127.0.0.1:{port}"),
            *("--tokenizer", str(TOKENIZER), "--dataset-name", "random", "--ignore-eos", "--disable-tqdm"),
            *("--random-input-len", str(PROMPT), "--random-output-len", str(load["output"])),
            *("--num-prompts", str(load["count"]), "--max-concurrency", str(load["concurrency"])),
            *("--num-warmups", "64", "--temperature", "1", "--result-json", str(out)),
        ]
        subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL, check=True)
        result: dict[str, Any] = json.loads(out.read_text())
        found[name] = result[FIGURES[name][0]]
    return found


if __name__ == "__main__":
    main()
