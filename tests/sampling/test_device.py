"""The sampler of devices, in the interpreter, beside the host's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm.sampling.device import DeviceSampler
from vllm.sampling.sampler import Sampler
from vllm.sampling_params import SamplingParams

from .conftest import Row, run_rows

pytest.importorskip("triton")

VOCAB = 60
PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.4, 1.0, 3.0]),
    top_k=st.sampled_from([0, 1, 7, 1000]),
    top_p=st.sampled_from([1.0, 0.8, 0.1]),
    min_p=st.sampled_from([0.0, 0.05]),
    frequency_penalty=st.sampled_from([0.0, 0.5]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    logprobs=st.sampled_from([None, 0, 3, -1]),
)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), params=st.lists(PARAMS, min_size=1, max_size=4))
def test_a_row_gets_the_same_alone_and_among_others(make_logits, seed: int, params: list[SamplingParams]) -> None:
    logits = make_logits(seed, len(params), VOCAB)
    rows = [Row(logits[i].clone(), params[i], output=[3, 3, 8], seed=i) for i in range(len(params))]
    together = run_rows(rows, kind=DeviceSampler)
    for index, row in enumerate(rows):
        alone = run_rows([row], kind=DeviceSampler)
        assert together.errors[index] is None
        assert alone.tokens[0] == together.tokens[index]
        assert alone.logprobs[0] == together.logprobs[index]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), params=PARAMS)
def test_the_same_tokens_are_left_as_by_the_host(make_logits, seed: int, params: SamplingParams) -> None:
    params.logprobs = -1
    row = Row(make_logits(seed, 1, VOCAB)[0], params, output=[3, 3, 8], seed=seed)
    (host,), (device,) = (run_rows([row], "processed_logprobs", kind).logprobs for kind in (Sampler, DeviceSampler))
    left = [
        [token for token, value in zip(x.top_ids, x.top_logprobs, strict=True) if value > -np.inf]
        for x in (host, device)
    ]
    assert left[0] == left[1]
    np.testing.assert_allclose(device.top_logprobs, host.top_logprobs, atol=1e-5)


def test_candidates_and_prompt_logprobs_are_those_of_the_host(make_logits) -> None:
    logits, counts, temperature = make_logits(0, 4, VOCAB), np.array([3, 1, 8, 2]), np.array([0.0, 1.0, 0.5, 2.0])
    kinds = [kind(4, VOCAB) for kind in (Sampler, DeviceSampler)]
    host, device = (sampler.candidates(logits.clone(), counts, temperature) for sampler in kinds)
    for ours, theirs in zip(device, host, strict=True):
        assert [token for token, _ in ours] == [token for token, _ in theirs]
        np.testing.assert_allclose([value for _, value in ours], [value for _, value in theirs], atol=1e-5)
    targets = torch.tensor([5, 0, 59, 7])
    found = [sampler.prompt_logprobs(logits, targets, 2, torch.clone) for sampler in kinds]
    for ours, theirs in zip(*found, strict=True):
        assert (ours.rank, ours.top_ids) == (theirs.rank, theirs.top_ids)
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-5)
