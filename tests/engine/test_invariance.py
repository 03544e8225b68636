"""What a request gets depends on the request alone: the same tokens and, to the last bit, the same log-probabilities."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from tests.engine.conftest import Load
from vllm import LLM, RequestOutput, SamplingParams

RNG = random.Random(1)
SHARED = [RNG.randrange(3, 500) for _ in range(40)]
OTHERS = [[RNG.randrange(3, 500) for _ in range(RNG.randint(1, 70))] for _ in range(31)]
ASKED = [[*SHARED, 7, 8, 9], [*SHARED[:20], 5], [3], OTHERS[0][:30]]
DTYPES = ["float32", "bfloat16"]
MODELS = ["llama", "gemma2", "mamba2"]


def params(number: int) -> SamplingParams:
    """Greedy, and drawn with a seed, in turn."""
    drawn: dict[str, Any] = {"temperature": 0.9, "top_p": 0.95, "seed": 11 + number, "repetition_penalty": 1.1}
    return SamplingParams(
        max_tokens=14,
        logprobs=3,
        prompt_logprobs=None if number % 2 else 1,
        ignore_eos=True,
        **(drawn if number % 2 else {"temperature": 0}),
    )


def essence(output: RequestOutput) -> tuple[Any, ...]:
    """All that the model decided, floats as they are."""
    completion = output.outputs[0]
    logprobs = [
        [(token, entry.logprob, entry.rank) for token, entry in position.items()]
        for position in completion.logprobs or ()
    ]
    prompt = [
        [(token, entry.logprob) for token, entry in position.items()]
        for position in output.prompt_logprobs or ()
        if position
    ]
    return completion.token_ids, logprobs, prompt


def run(llm: LLM, company: bool = False) -> list[tuple[Any, ...]]:
    """The four requests, one after the other, or together and among 28 others."""
    if not company:
        return [
            essence(llm.generate(prompt_token_ids=prompt, sampling_params=params(i), use_tqdm=False)[0])
            for i, prompt in enumerate(ASKED)
        ]
    crowd = [*OTHERS[:10], ASKED[0], *OTHERS[10:15], ASKED[1], ASKED[2], *OTHERS[15:28], ASKED[3]]
    places = [10, 16, 17, 31]
    each = [SamplingParams(temperature=1.0, seed=i, max_tokens=1 + i, ignore_eos=True) for i in range(32)]
    for number, place in enumerate(places):
        each[place] = params(number)
    outputs = llm.generate(prompt_token_ids=crowd, sampling_params=each, use_tqdm=False)
    return [essence(outputs[place]) for place in places]


@pytest.fixture(scope="module")
def alone(load: Load) -> dict[tuple[str, str], list[tuple[Any, ...]]]:
    return {
        (model, dtype): run(load(model, dtype=dtype, enable_prefix_caching=False, max_num_batched_tokens=4096))
        for model in MODELS
        for dtype in DTYPES
    }


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("prefix_caching", [True, False])
def test_among_others(
    model: str, dtype: str, prefix_caching: bool, load: Load, alone: dict[tuple[str, str], list[tuple[Any, ...]]]
) -> None:
    assert run(load(model, dtype=dtype, enable_prefix_caching=prefix_caching), company=True) == alone[model, dtype]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 8, 13, 16, 31, 64])
def test_in_chunks(
    model: str, dtype: str, chunk: int, load: Load, alone: dict[tuple[str, str], list[tuple[Any, ...]]]
) -> None:
    llm = load(model, dtype=dtype, max_num_batched_tokens=chunk, enable_prefix_caching=False)
    assert run(llm) == alone[model, dtype]


def test_in_chunks_of_every_size(load: Load) -> None:
    asked = [*SHARED, 7, 8, 9, *OTHERS[1][:21]]
    found = []
    for chunk in range(1, 65):
        with LLM(
            load("llama").llm_engine.model_config.path, dtype="bfloat16", max_num_batched_tokens=chunk, max_num_seqs=1
        ) as llm:
            found.append(essence(llm.generate(prompt_token_ids=asked, sampling_params=params(1), use_tqdm=False)[0]))
    assert all(other == found[0] for other in found)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_with_a_cache_so_small_that_requests_are_preempted(
    model: str, dtype: str, load: Load, alone: dict[tuple[str, str], list[tuple[Any, ...]]]
) -> None:
    llm = load(
        model, dtype=dtype, max_model_len=96, num_gpu_blocks_override=8, block_size=16, max_num_batched_tokens=24
    )
    scheduler = llm.llm_engine.scheduler
    before = scheduler.stats.num_preemptions
    assert run(llm, company=True) == alone[model, dtype]
    assert scheduler.stats.num_preemptions > before


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_after_a_prefix_hit(
    model: str, dtype: str, load: Load, alone: dict[tuple[str, str], list[tuple[Any, ...]]]
) -> None:
    llm = load(model, dtype=dtype)
    llm.generate(prompt_token_ids=[*SHARED, 1, 2], sampling_params=SamplingParams(max_tokens=2), use_tqdm=False)
    hits = llm.llm_engine.scheduler.stats.prefix_hits
    for _ in range(2):
        assert run(llm) == alone[model, dtype]
    assert llm.llm_engine.scheduler.stats.prefix_hits > hits


@pytest.mark.parametrize("dtype", DTYPES)
def test_among_others_on_two_threads(dtype: str, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    llm = load("llama", dtype=dtype, seed=2)  # an engine of its own, so that it is loaded here
    torch.set_num_threads(2)
    try:
        each = [params(number) for number in range(4)] + [SamplingParams(max_tokens=9, ignore_eos=True)] * 5
        outputs = llm.generate(prompt_token_ids=[*ASKED, *OTHERS[3:8]], sampling_params=each, use_tqdm=False)
        assert [essence(output) for output in outputs[:4]] == run(llm)
    finally:
        torch.set_num_threads(1)


def test_a_seed_gives_the_same_siblings_whatever_runs_beside_them(load: Load) -> None:
    asked = SamplingParams(temperature=1.0, n=3, seed=5, max_tokens=12, ignore_eos=True)
    llm = load("llama")

    def siblings(outputs: list[RequestOutput]) -> list[list[int]]:
        return [completion.token_ids for completion in outputs[0].outputs]

    single = siblings(llm.generate(prompt_token_ids=ASKED[0], sampling_params=asked, use_tqdm=False))
    noise = SamplingParams(temperature=1.0, max_tokens=12)
    crowd = siblings(
        llm.generate(prompt_token_ids=[ASKED[0], *OTHERS], sampling_params=[asked, *[noise] * 31], use_tqdm=False)
    )
    assert single == crowd
    assert len({tuple(tokens) for tokens in single}) == 3
