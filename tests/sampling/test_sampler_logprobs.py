"""Log-probabilities, ranks and candidates against log_softmax and a sort."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm.errors import ConfigError
from vllm.sampling.logprobs import token_logprobs
from vllm.sampling.mass import Mass
from vllm.sampling.rows import top
from vllm.sampling.sampler import Sampler
from vllm.sampling_params import SamplingParams


def ranked(logits: torch.Tensor, count: int) -> list[int]:
    """Return the most likely tokens by sorting them all."""
    values = logits.tolist()
    return sorted(range(len(values)), key=lambda token: (-values[token], token))[:count]


def check(found, logits, chosen, count):
    expected = torch.log_softmax(logits.double(), dim=-1)
    assert found.logprob == pytest.approx(float(expected[chosen]), abs=1e-5)
    assert found.rank == 1 + int((logits > logits[chosen]).sum())
    assert found.top_ids == ranked(logits, count)
    assert found.top_logprobs == pytest.approx(expected[found.top_ids].tolist(), abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), vocab_size=st.sampled_from([3, 97, 512, 513, 1000]), count=st.integers(1, 600))
def test_the_most_likely_tokens_come_in_one_order_despite_ties(make_logits, seed, vocab_size, count):
    logits = make_logits(seed, 4, vocab_size)
    logits[2] = 0.0
    logits[3, vocab_size // 3 :] = -float("inf")
    _, ids = top(logits, count)
    assert ids.tolist() == [ranked(row, count) for row in logits]


def test_rows_get_as_many_logprobs_as_they_asked_for(make_row, sample_rows, make_logits):
    logits = make_logits(0, 40, 1000)
    wanted = [None, 0, 1, 5, -1, 20, 999]
    rows = [make_row(logits[i], SamplingParams(logprobs=wanted[i % 7], top_p=0.9), seed=i) for i in range(40)]
    found = sample_rows(rows)
    for i, (token, logprobs) in enumerate(zip(found.tokens, found.logprobs, strict=True)):
        count = wanted[i % 7]
        if count is None:
            assert logprobs is None
        else:
            check(logprobs, logits[i], token, 1000 if count == -1 else count)


def test_best_of_brings_the_chosen_logprob_unasked(make_row, sample_rows, make_logits):
    logits = make_logits(0, 1, 97)
    found = sample_rows([make_row(logits[0], SamplingParams(n=1, best_of=2))])
    check(found.logprobs[0], logits[0], found.tokens[0], 0)


@pytest.mark.parametrize("vocab_size", [97, 1000, 32003, 50021])
def test_logprobs_have_the_same_bits_for_every_number_of_rows(vocab_size):
    logits = torch.randn(40, vocab_size, generator=torch.Generator().manual_seed(1)) * 4
    mass = Mass(vocab_size, "cpu")
    chosen, counts = np.arange(40) * 2, np.full(40, 3)
    alone = [token_logprobs(logits[i : i + 1], chosen[i : i + 1], counts[i : i + 1], mass)[0] for i in range(40)]
    for rows in range(2, 41):
        assert token_logprobs(logits[:rows], chosen[:rows], counts[:rows], mass) == alone[:rows]


@pytest.mark.parametrize("mode", ["raw_logits", "processed_logits", "raw_logprobs", "processed_logprobs"])
def test_the_mode_says_which_values_are_returned(make_row, sample_rows, make_logits, mode):
    logits = make_logits(4, 1, 97)[0]
    params = SamplingParams(temperature=0.5, top_k=3, logit_bias={8: 9.0}, logprobs=4)
    found = sample_rows([make_row(logits, params)], mode).logprobs[0]
    values = logits.clone()
    if mode.startswith("processed"):
        values[8] += 9.0
        values /= 0.5
        values[ranked(values, 97)[3:]] = -float("inf")
    expected = values.double() if mode.endswith("logits") else torch.log_softmax(values.double(), dim=-1)
    assert found.top_ids == ranked(values, 4)
    assert found.top_logprobs == pytest.approx(expected[found.top_ids].tolist(), abs=1e-5)


def test_processed_logprobs_do_not_change_the_token_and_follow_min_p(make_row, sample_rows, make_logits):
    logits = make_logits(6, 20, 300)
    rows = [make_row(logits[i], SamplingParams(temperature=1.5, min_p=0.1, logprobs=-1), seed=i) for i in range(20)]
    raw, processed = sample_rows(rows), sample_rows(rows, "processed_logprobs")
    assert raw.tokens == processed.tokens
    for i, found in enumerate(processed.logprobs):
        assert found.logprob > -float("inf")
        scaled = logits[i].double() / 1.5
        kept = scaled - scaled.max() >= np.log(0.1)
        assert np.isfinite(found.top_logprobs).sum() == int(kept.sum())
        assert np.exp(found.top_logprobs).sum() == pytest.approx(1.0)


def test_an_unknown_mode_is_refused():
    with pytest.raises(ConfigError, match="use one of raw_logprobs"):
        Sampler(1, 10, logprobs_mode="raw")


@pytest.mark.parametrize(("num_tokens", "count"), [(1, 0), (32, 2), (33, 5), (150, 1), (70, -1), (0, 2)])
def test_prompt_logprobs_are_computed_a_few_rows_at_a_time(num_tokens, count):
    generator = torch.Generator().manual_seed(3)
    hidden, targets = torch.randn(num_tokens, 500, generator=generator), torch.randint(0, 500, (num_tokens,))
    shapes = []

    def logits_fn(rows: torch.Tensor) -> torch.Tensor:
        shapes.append(len(rows))
        return rows * 2

    found = Sampler(2, 500).prompt_logprobs(hidden, targets, count, logits_fn)
    assert len(found) == num_tokens and max(shapes, default=0) <= 64 and sum(shapes) == num_tokens
    for i, position in enumerate(found):
        check(position, hidden[i] * 2, int(targets[i]), 500 if count == -1 else count)


def test_candidates_are_the_best_of_log_softmax_at_the_rows_temperature(make_logits):
    logits = make_logits(8, 5, 200)
    logits[2, 3:] = -float("inf")
    logits[3, 100] = float("nan")
    counts, temperature = np.array([4, 1, 6, 4, 300]), np.array([0.0, 2.0, 1.0, 1.0, 0.5])
    found = Sampler(1, 200).candidates(logits, counts, temperature)
    assert [len(row) for row in found] == [4, 1, 3, 0, 200]
    for i in (0, 1, 2, 4):
        scaled = torch.log_softmax(logits[i].double() / (temperature[i] or 1.0), dim=-1)
        ids, values = zip(*found[i], strict=True)
        assert list(ids) == ranked(logits[i], len(ids))
        assert list(values) == pytest.approx(scaled[list(ids)].tolist(), abs=1e-5)
