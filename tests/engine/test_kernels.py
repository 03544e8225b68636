"""The engine with the native kernels and with plain torch: the same tokens of a float32 model."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vllm import LLM, SamplingParams
from vllm.ops import native

RNG = random.Random(4)
PROMPTS = [[RNG.randrange(3, 500) for _ in range(length)] for length in (1, 5, 33, 70, 17)]


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """`kernels("avx2")` has this process go on as one that was started with VLLM_CPU_KERNELS=avx2."""

    def use(name: str) -> None:
        monkeypatch.setenv("VLLM_CPU_KERNELS", name)
        native.library.cache_clear()

    found = native.library()
    yield use
    monkeypatch.undo()
    native.library.cache_clear()
    if found:
        found.choose(found.variants()[0])


@pytest.mark.parametrize("model", ["llama", "gemma2", "opt"])
def test_every_kind_of_kernels_gives_the_tokens_that_torch_gives(
    model: str, checkpoint: Callable[..., Path], kernels: Callable[[str], None]
) -> None:
    variants = found.variants() if (found := native.library()) else []

    def tokens(name: str) -> list[list[int]]:
        kernels(name)
        asked = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
        with LLM(checkpoint(model), dtype="float32", max_num_batched_tokens=48) as llm:
            outputs = llm.generate(prompt_token_ids=PROMPTS, sampling_params=asked, use_tqdm=False)
        return [output.outputs[0].token_ids for output in outputs]

    expected = tokens("torch")
    for name in variants:
        assert tokens(name) == expected, name
