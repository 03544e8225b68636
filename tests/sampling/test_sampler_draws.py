"""Draws: one row after another against a reference, alone against in company, and against the distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm.sampling.random import as_seed, uniforms
from vllm.sampling.sampler import Sampler
from vllm.sampling_params import SamplingParams

from .conftest import run_rows

VOCAB = 1000

sampling_params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 1.7, 40.0]),
    top_k=st.sampled_from([0, -1, 1, 2, 50, 256, 300, 999, 5000]),
    top_p=st.sampled_from([1.0, 0.999, 0.9, 0.5, 0.01]),
    min_p=st.sampled_from([0.0, 0.0, 0.02, 0.3, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.3, 0.8]),
    presence_penalty=st.sampled_from([0.0, 0.0, 0.7, -1.5]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.4]),
    logprobs=st.sampled_from([None, None, 0, 1, 5, -1]),
    min_tokens=st.sampled_from([0, 0, 5]),
    logit_bias=st.sampled_from([None, None, {3: 5.0, 17: -100.0}]),
    allowed_token_ids=st.sampled_from([None, None, None, [4, 5, 6, 900]]),
)


def reference_weights(
    logits: torch.Tensor, params: SamplingParams, slack: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Sort everything, then filter: tokens best first with their weights, the dropped ones left out."""
    values = logits.double().numpy() / params.temperature
    ids = np.lexsort((np.arange(len(values)), -values))
    weights = np.exp(values[ids] - values.max())
    keep = weights >= params.min_p
    if params.top_k > 0:
        keep &= np.arange(len(ids)) < params.top_k
    ids, weights = ids[keep], weights[keep]
    if params.top_p < 1.0:
        before = np.cumsum(weights) - weights
        keep = before < params.top_p * (1 + slack) * weights.sum()
        ids, weights = ids[keep], weights[keep]
    return ids, weights


def holds(token: int, uniform: float, ids: np.ndarray, weights: np.ndarray, by_id: bool) -> bool:
    """Whether `token` is where the running sum of weights passes `uniform`, float32 rounding allowed."""
    if by_id:
        order = np.argsort(ids)
        ids, weights = ids[order], weights[order]
    ends = np.cumsum(weights) / weights.sum()
    place = np.flatnonzero(ids == token)
    if not len(place):
        return False
    start = ends[place[0] - 1] if place[0] else 0.0
    return start - 1e-5 <= uniform <= ends[place[0]] + 1e-5


@pytest.fixture(scope="session")
def sample_rows():
    """The host's sampler alone: on a device draws are in another order, and the interpreter is slow (see `test_device`)."""
    return run_rows


filters = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.3, 1.0, 1.7, 40.0]),
        "top_k": st.sampled_from([0, 1, 2, 50, 256, 257, 999, 1000, 5000]),
        "top_p": st.sampled_from([1.0, 0.999, 0.9, 0.5, 0.01]),
        "min_p": st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    }
)
SLACKS = (-1e-6, 1e-6)  # a token on the border of top_p may fall to either side


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), position=st.integers(0, 3), given=filters)
def test_a_draw_is_the_inverse_cdf_of_the_filtered_distribution(
    make_row, sample_rows, make_logits, *, seed, position, given
):
    params = SamplingParams(**given)
    logits = make_logits(seed, 1, VOCAB)[0]
    token = sample_rows([make_row(logits, params, output=[5] * position, seed=seed)]).tokens[0]
    uniform = uniforms(np.array([as_seed(seed)]), np.array([position]))[0]
    by_id = params.top_p == 1.0 and not 0 < params.top_k < VOCAB
    assert any(holds(token, uniform, *reference_weights(logits, params, slack), by_id) for slack in SLACKS)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), given=filters)
def test_the_kept_tokens_are_those_of_a_full_sort(make_row, sample_rows, make_logits, *, seed, given):
    params = SamplingParams(**given, logprobs=-1)
    logits = make_logits(seed, 1, VOCAB)[0]
    found = sample_rows([make_row(logits, params)], mode="processed_logprobs").logprobs[0]
    kept = [token for token, logprob in zip(found.top_ids, found.top_logprobs, strict=True) if logprob > -np.inf]
    assert any(kept == reference_weights(logits, params, slack)[0].tolist() for slack in SLACKS)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), params=st.lists(sampling_params, min_size=1, max_size=40))
def test_a_row_gets_the_same_alone_and_among_others(make_row, sample_rows, make_logits, seed, params):
    logits = make_logits(seed, len(params), VOCAB)
    numbers = np.random.default_rng(seed)
    rows = [
        make_row(
            logits[i].clone(),
            params[i],
            prompt=numbers.integers(0, 30, size=numbers.integers(1, 20)).tolist(),
            output=numbers.integers(0, 30, size=numbers.integers(0, 9)).tolist(),
            seed=i,
            eos=(3, 8),
            bad_words=[[9], [4, 5]] if i % 3 == 0 else [],
        )
        for i in range(len(params))
    ]
    together = sample_rows(rows)
    for i, row in enumerate(rows):
        alone = sample_rows([row])
        assert together.errors[i] is None
        assert alone.tokens[0] == together.tokens[i]
        assert alone.logprobs[0] == together.logprobs[i]  # bit for bit


@pytest.mark.parametrize("vocab_size", [97, 32003])
@pytest.mark.parametrize("mode", ["raw_logprobs", "processed_logprobs", "raw_logits", "processed_logits"])
def test_tokens_and_logprobs_have_the_same_bits_for_every_number_of_rows(
    make_row, sample_rows, make_logits, *, vocab_size, mode
):
    kinds = [
        {"temperature": 0.0},
        {"temperature": 1.0},
        {"temperature": 0.7, "top_p": 0.9},
        {"temperature": 3.0, "top_p": 0.99},
        {"temperature": 0.9, "top_k": 20, "min_p": 0.01},
    ]
    logits = make_logits(5, 41, vocab_size) * 1.01
    rows = [make_row(logits[i], SamplingParams(**kinds[i % 5], logprobs=i % 4), seed=i) for i in range(40)]
    alone = [sample_rows([row], mode) for row in rows]
    for count in (2, 3, 7, 31, 33, 40):
        together = sample_rows(rows[:count], mode)
        assert together.tokens == [one.tokens[0] for one in alone[:count]]
        assert together.logprobs == [one.logprobs[0] for one in alone[:count]]


def test_a_wide_nucleus_goes_beyond_the_first_candidates(make_row, sample_rows):
    logits = torch.linspace(0, 1e-3, 20000)
    params = SamplingParams(top_p=0.999, logprobs=-1)
    found = sample_rows([make_row(logits, params)], mode="processed_logits").logprobs[0]
    kept = np.isfinite(found.top_logprobs).sum()
    assert kept == len(reference_weights(logits, params)[0]) > 19000
    middle = sample_rows(
        [make_row(logits, SamplingParams(top_p=0.3, top_k=9000, logprobs=-1))], mode="processed_logits"
    )
    ids = reference_weights(logits, SamplingParams(top_p=0.3, top_k=9000))[0]
    assert middle.logprobs[0].top_ids[: len(ids)] == ids.tolist()
    assert np.isfinite(middle.logprobs[0].top_logprobs).sum() == len(ids)


def test_top_p_of_one_keeps_even_tokens_too_unlikely_to_count(make_row, sample_rows):
    logits = -50.0 * torch.arange(6)
    found = sample_rows([make_row(logits, SamplingParams(top_k=3, logprobs=-1))], mode="processed_logits")
    assert found.logprobs[0].top_logprobs == [0.0, -50.0, -100.0] + [-np.inf] * 3


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 1.0},
        {"temperature": 0.5},
        {"temperature": 1.0, "top_k": 5},
        {"temperature": 1.3, "top_p": 0.8},
        {"temperature": 1.0, "min_p": 0.1},
        {"temperature": 2.0, "top_k": 8, "top_p": 0.9, "min_p": 0.05},
    ],
)
def test_twenty_thousand_draws_follow_the_distribution(params):
    num_draws, vocab_size = 20_000, 12
    params = SamplingParams(**params)
    logits = torch.linspace(-2, 2, vocab_size)[torch.randperm(vocab_size, generator=torch.Generator().manual_seed(1))]
    sampler = Sampler(1000, vocab_size)
    for slot in range(1000):
        sampler.admit(slot, params, seed=slot, eos_token_ids=(), bad_words_ids=[], num_prompt=1)
    counts = np.zeros(vocab_size)
    for position in range(num_draws // 1000):
        lengths = [1 + position] * 1000
        table = torch.zeros(1000, 40, dtype=torch.int64)
        tokens = sampler.sample(logits.expand(1000, -1).clone(), list(range(1000)), lengths, table).tokens
        counts += np.bincount(tokens, minlength=vocab_size)
    ids, weights = reference_weights(logits, params)
    expected = np.zeros(vocab_size)
    expected[ids] = weights / weights.sum() * num_draws
    assert not counts[expected == 0].any()
    kept = expected > 0
    chi_square = ((counts[kept] - expected[kept]) ** 2 / expected[kept]).sum()
    assert chi_square < 35  # 11 degrees of freedom at most: one in 4000 by chance, and the seeds are fixed


def test_draws_of_a_sequence_and_of_neighbouring_seeds_are_unrelated():
    seeds, positions = np.meshgrid(np.arange(300, dtype=np.uint64), np.arange(300))
    numbers = uniforms(seeds.ravel(), positions.ravel()).reshape(300, 300)
    assert ((numbers > 0) & (numbers < 1)).all()
    assert len(np.unique(numbers)) == numbers.size
    for neighbour in (numbers[1:, :] * numbers[:-1, :], numbers[:, 1:] * numbers[:, :-1]):
        assert abs(neighbour.mean() - 0.25) < 0.003
    assert abs(np.var(numbers) - 1 / 12) < 0.001


def test_a_seed_may_be_any_integer_of_64_bits():
    seeds = np.array([as_seed(seed) for seed in (-1, -(2**63), 2**63 - 1, 0, 2**64 + 5)])
    assert len(set(uniforms(seeds, np.zeros(5, dtype=np.int64)).tolist())) == 5


@pytest.mark.parametrize("mode", ["raw_logprobs", "processed_logprobs"])
@pytest.mark.parametrize("given", [{}, {"top_p": 0.9}, {"top_k": 1}])
def test_no_temperature_brings_back_what_is_not_allowed(make_row, sample_rows, mode, given):
    allowed = [4, 7]
    rows = [
        make_row(torch.arange(50.0), SamplingParams(temperature=1e300, allowed_token_ids=allowed, logprobs=2, **given))
        for _ in range(5)
    ]
    found = sample_rows(rows, mode)
    assert found.errors == [None] * 5 and set(found.tokens) <= set(allowed)
    assert all(np.isfinite(position.logprob) for position in found.logprobs)


def test_greedy_takes_the_lowest_token_among_equals(make_row, sample_rows):
    for vocab_size in (10, 1000, 40_000):
        logits = torch.zeros(vocab_size)
        logits[[vocab_size - 1, vocab_size // 2, vocab_size // 2 + 1]] = 2.0
        rows = [make_row(logits, SamplingParams(temperature=0.0)) for _ in range(5)]
        rows.append(make_row(logits, SamplingParams(temperature=1.0, top_k=1)))
        assert sample_rows(rows).tokens == [vocab_size // 2] * 6
        assert sample_rows(rows[:1]).tokens == [vocab_size // 2]


def test_a_slot_can_be_taken_again_after_release():
    sampler = Sampler(1, 10)
    empty = {"seed": 0, "eos_token_ids": (), "bad_words_ids": [], "num_prompt": 1}
    sampler.admit(0, SamplingParams(temperature=0, allowed_token_ids=[3], logprobs=1), **empty)
    table, lengths, logits = torch.zeros(1, 4, dtype=torch.int64), [1], torch.arange(10.0)[None]
    first = sampler.sample(logits.clone(), [0], lengths, table)
    sampler.release(0)
    sampler.admit(0, SamplingParams(temperature=0), **empty)
    second = sampler.sample(logits.clone(), [0], lengths, table)
    assert (first.tokens, second.tokens) == ([3], [9])
    assert first.logprobs[0] is not None and second.logprobs == [None]
