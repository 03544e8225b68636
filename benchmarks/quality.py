"""What quantizing costs in quality:  python -m benchmarks.quality --out benchmarks

Two measures, written to quality.json, which the report shows:

* perplexity of the default model on documents that it was not trained on (`tools/default_model/corpus.py`), in pieces of
  512 tokens;
* relative error of the logits that the random checkpoint of the benchmark gives after prompts of 64 tokens, against the
  same weights computed in float32:  ‖logits - exact‖ / ‖exact‖, and how often the most likely token is the same.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import checkpoints
from benchmarks.engines import ROOT
from benchmarks.workloads import IDS, SEED

QUALITY = "quality.json"
EXACT = "float32"
WAYS: dict[str, dict[str, Any]] = {
    EXACT: {"dtype": "float32"},
    "bf16": {"dtype": "bfloat16"},
    "bf16, int8 cache": {"dtype": "bfloat16", "kv_cache_dtype": "int8"},
    "int8": {"dtype": "bfloat16", "quantization": "int8"},
    "int4": {"dtype": "bfloat16", "quantization": "int4"},
    "int4, int8 cache": {"dtype": "bfloat16", "quantization": "int4", "kv_cache_dtype": "int8"},
}
PIECE = 512
NUM_PROMPTS, PROMPT = 16, 64
CACHE_BYTES = 200_000_000


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path(".bench"), help="folder of the checkpoints")
    parser.add_argument("--out", type=Path, default=Path(".bench/results"), help=f"folder for {QUALITY}")
    options = parser.parse_args()
    checkpoints.make("safetensors", options.work, Path(sys.executable))
    model = checkpoints.path_of("safetensors", options.work)
    prompts = _prompts()
    exact: Any = None
    found: dict[str, dict[str, float]] = {}
    for name, way in WAYS.items():
        found[name] = {"perplexity": perplexity(way)}
        logits = _logits(model, prompts, way)
        if name == EXACT:
            exact = logits
        else:
            found[name] |= compare(logits, exact)
        print(name, found[name], flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / QUALITY).write_text(json.dumps(found, indent=1) + "\n")


def perplexity(way: Mapping[str, Any]) -> float:
    """Of the default model on its held-out documents: e to the mean loss per token."""
    from vllm import LLM, SamplingParams

    with LLM(kv_cache_memory_bytes=CACHE_BYTES, enable_prefix_caching=False, **way) as llm:
        tokenizer = llm.llm_engine.tokenizer
        pieces = [
            ids[at : at + PIECE]
            for ids in tokenizer.encode_batch(_held_out(), False)
            for at in range(0, len(ids), PIECE)
        ]
        prompts = [{"prompt_token_ids": piece} for piece in pieces if len(piece) > 1]
        outputs = llm.generate(prompts, SamplingParams(max_tokens=1, prompt_logprobs=0), use_tqdm=False)
    losses = [
        -entry[token].logprob
        for output in outputs
        for token, entry in zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True)
    ]
    return math.exp(sum(losses) / len(losses))


def compare(logits: Any, exact: Any) -> dict[str, float]:
    """Relative error over all prompts, and the share of prompts whose most likely token is the same.  [n, V], [n, V]"""
    import numpy as np

    error = np.linalg.norm(logits - exact) / np.linalg.norm(exact)
    return {"error": float(error), "same": float((logits.argmax(1) == exact.argmax(1)).mean())}


def _logits(model: Path, prompts: list[list[int]], way: Mapping[str, Any]) -> Any:
    """Logits of the token after each prompt.  -> [n, V] float32"""
    import numpy as np

    from vllm import LLM, SamplingParams

    options = {"skip_tokenizer_init": True, "max_model_len": 2 * PROMPT, "kv_cache_memory_bytes": CACHE_BYTES}
    params = SamplingParams(max_tokens=1, logprobs=-1, temperature=0.0, ignore_eos=True, detokenize=False)
    rows = []
    with LLM(str(model), max_logprobs=-1, logprobs_mode="raw_logits", **options, **way) as llm:
        for prompt in prompts:  # one at a time: a row is 150,000 Python objects
            (output,) = llm.generate({"prompt_token_ids": prompt}, params, use_tqdm=False)
            (entry,) = output.outputs[0].logprobs
            row = np.empty(len(entry), dtype=np.float32)
            row[list(entry)] = [each.logprob for each in entry.values()]
            rows.append(row)
    return np.stack(rows)


def _prompts() -> list[list[int]]:
    rng = random.Random(SEED)
    return [rng.choices(IDS, k=PROMPT) for _ in range(NUM_PROMPTS)]


def _held_out() -> list[str]:
    sys.path.insert(0, str(ROOT / "tools" / "default_model"))
    import corpus

    return [document.text() for document in corpus.documents() if document.held_out]


if __name__ == "__main__":
    main()
