"""The process that embeds:  python benchmarks/embedder.py {ours,sentence_transformers} MODEL DTYPE < sentences.json

It loads the model, embeds everything once to warm up, once more by the clock, and prints the seconds and the first
numbers of the first vector as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

Embed = Callable[[list[str]], Any]


def ours(model: str, dtype: str) -> Embed:
    from vllm import LLM, PoolingParams

    llm = LLM(model, task="embed", dtype=dtype)
    params = PoolingParams(truncate_prompt_tokens=-1)
    return lambda texts: [each.outputs.embedding for each in llm.embed(texts, pooling_params=params, use_tqdm=False)]


def sentence_transformers(model: str, dtype: str) -> Embed:
    import torch
    from sentence_transformers import SentenceTransformer

    made = SentenceTransformer(model, device="cpu", model_kwargs={"dtype": getattr(torch, dtype)})
    return lambda texts: made.encode(texts, batch_size=32, convert_to_tensor=True).float().tolist()


def main() -> None:
    del sys.path[0]  # the folder of the benchmarks, whose names are not the libraries'
    name, model, dtype = sys.argv[1:]
    texts = json.load(sys.stdin)
    embed = {"ours": ours, "sentence_transformers": sentence_transformers}[name](model, dtype)
    embed(texts)
    began = time.perf_counter()
    vectors = embed(texts)
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "vector": vectors[0][:8]}))


if __name__ == "__main__":
    main()
