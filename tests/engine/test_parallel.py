"""A model that two processes compute together says what one alone says."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vllm import LLM, SamplingParams
from vllm.errors import ConfigError, EngineDeadError, RequestError

PROMPTS = ["The tide", "Nobody in the village thought about it. Fishermen's boats", "3 for 10", "A"]


def two(folder: Path, **options: Any) -> LLM:
    return LLM(str(folder), device="cpu", dtype="float32", tensor_parallel_size=2, max_num_seqs=4, **options)


@pytest.mark.parametrize(
    "kind", ["llama", "gpt2", "gpt_neox", "phi3", "qwen2_moe", "mixtral", "gpt_oss", "llama4_text"]
)
def test_two_processes_say_what_one_says(checkpoint: Callable[..., Path], kind: str) -> None:
    folder = checkpoint(kind)
    greedy = SamplingParams(temperature=0, max_tokens=12, logprobs=2, ignore_eos=True)
    plain = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    drawn = SamplingParams(temperature=1.0, seed=5, max_tokens=12, top_p=0.9, ignore_eos=True)
    alone, together = LLM(str(folder), device="cpu", dtype="float32"), two(folder)
    for params in (greedy, plain, drawn):
        expected, found = (llm.generate(PROMPTS, params, use_tqdm=False) for llm in (alone, together))
        for one, other in zip(expected, found, strict=True):
            assert other.outputs[0].token_ids == one.outputs[0].token_ids
    with pytest.raises(RequestError, match="logits_processors"):
        together.generate("A", SamplingParams(logits_processors=[lambda ids, logits: logits]), use_tqdm=False)
    together.generate("A", greedy, use_tqdm=False)
    together.llm_engine.close()


def test_a_process_that_ends_ends_the_engine_in_words(checkpoint: Callable[..., Path]) -> None:
    llm = two(checkpoint("llama"))
    (process, _), *_ = llm.llm_engine.core.executor._ranks  # type: ignore[union-attr]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with pytest.raises(EngineDeadError, match="process 1 of 2 .* status -9"):
        llm.generate("A", SamplingParams(max_tokens=5), use_tqdm=False)
    llm.llm_engine.close()


def test_what_cannot_be_shared_is_refused(checkpoint: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match=r"tensor_parallel_size=3 can't cut .*; use a number that divides"):
        LLM(str(checkpoint("llama")), device="cpu", tensor_parallel_size=3)
