"""Times one sampling step at a vocabulary of 151936 and prints medians in milliseconds.

python benchmarks/sampling.py [threads]
"""

from __future__ import annotations

import statistics
import sys
import time

import numpy as np
import torch

from vllm.sampling.sampler import Sampler
from vllm.sampling_params import SamplingParams

VOCAB = 151936
NUM_TOKENS = 1024  # half prompt, half output
KINDS = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.8},
    "top_p 0.9": {"temperature": 0.8, "top_p": 0.9},
    "top_k 50": {"temperature": 0.8, "top_k": 50},
    "penalties": {"temperature": 0.0, "repetition_penalty": 1.1, "frequency_penalty": 0.2},
    "logprobs 5": {"temperature": 0.0, "logprobs": 5},
}


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    print(f"{'ms per step':14s}{'1 row':>9s}{'32 rows':>9s}")
    for name, given in KINDS.items():
        times = [median_ms(SamplingParams(**given), num_rows) for num_rows in (1, 32)]
        print(f"{name:14s}{times[0]:9.2f}{times[1]:9.2f}")


def median_ms(params: SamplingParams, num_rows: int, repeats: int = 15) -> float:
    sampler = Sampler(num_rows, VOCAB)
    for slot in range(num_rows):
        sampler.admit(slot, params, seed=slot, eos_token_ids=(), bad_words_ids=[], num_prompt=NUM_TOKENS // 2)
    table = torch.randint(0, VOCAB, (num_rows, NUM_TOKENS))
    logits = torch.randn(num_rows, VOCAB) * 3
    logits[:, :200] += 12  # a few hundred likely tokens, as a language model has
    slots, lengths = np.arange(num_rows), np.full(num_rows, NUM_TOKENS)
    times = []
    for _ in range(repeats):
        scratch = logits.clone()
        start = time.perf_counter()
        sampler.sample(scratch, slots, lengths, table)
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


if __name__ == "__main__":
    main()
