"""Penalties and per-request edits of logits, against counters and by example; failures stay with their row."""

from __future__ import annotations

import functools
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm.errors import RequestError
from vllm.sampling.sampler import Sampler
from vllm.sampling_params import SamplingParams

VOCAB = 50
INF = float("inf")


def processed(sample_rows, *rows) -> list[list[float]]:
    """Return each row's logits after edits and penalties, in order of token ids."""
    found = sample_rows(list(rows), mode="processed_logits")
    assert found.errors == [None] * len(rows)
    return [[value for _, value in sorted(zip(row.top_ids, row.top_logprobs, strict=True))] for row in found.logprobs]


def greedy(**given) -> SamplingParams:
    return SamplingParams(temperature=0.0, logprobs=-1, **given)


def reference_penalties(logits, prompt, output, params) -> list[float]:
    values = logits.tolist()
    for token in set(prompt) | set(output):
        if token < len(values):
            penalty = params.repetition_penalty
            values[token] = values[token] / penalty if values[token] > 0 else values[token] * penalty
    for token, count in Counter(output).items():
        values[token] -= params.frequency_penalty * count + params.presence_penalty
    return values


tokens = st.lists(st.integers(0, VOCAB - 1), max_size=30)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    params=st.builds(
        greedy,
        repetition_penalty=st.sampled_from([1.0, 0.5, 1.7]),
        presence_penalty=st.sampled_from([0.0, -2.0, 1.1]),
        frequency_penalty=st.sampled_from([0.0, -0.3, 1.9]),
    ),
    prompt=tokens,
    output=tokens,
)
def test_penalties_are_those_of_a_counter(make_row, sample_rows, make_logits, *, seed, params, prompt, output):
    plain, other = greedy(), greedy(repetition_penalty=1.2, frequency_penalty=0.2)
    logits = make_logits(seed, 3, VOCAB)
    prompt = [VOCAB + 3, *prompt]  # a placeholder that has no logit
    rows = [
        make_row(logits[0], plain, output=output),
        make_row(logits[1], params, prompt=prompt, output=output),
        make_row(logits[2], other, prompt=[2], output=[4, 4, 4]),
    ]
    first, second, third = processed(sample_rows, *rows)
    assert first == logits[0].tolist()
    np.testing.assert_allclose(second, reference_penalties(logits[1], prompt, output, params), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(third, reference_penalties(logits[2], [2], [4, 4, 4], other), rtol=1e-5, atol=1e-5)


def test_only_allowed_tokens_are_left(make_row, sample_rows):
    row = make_row(torch.arange(50.0), greedy(allowed_token_ids=[7, 3, 3]))
    assert processed(sample_rows, row)[0] == [float(i) if i in (3, 7) else -INF for i in range(50)]
    assert sample_rows([row]).tokens == [7]


def test_a_bias_is_added_but_does_not_bring_back_what_is_not_allowed(make_row, sample_rows):
    row = make_row(torch.zeros(50), greedy(logit_bias={4: 2.5, 6: 100.0}, allowed_token_ids=[4, 5]))
    assert processed(sample_rows, row)[0] == [{4: 2.5, 5: 0.0}.get(i, -INF) for i in range(50)]


@pytest.mark.parametrize(
    ("prompt", "output", "banned"),
    [
        ([1, 2], [], {9}),
        ([1, 2], [1, 2], {9, 3}),
        ([1, 2], [2], {9}),  # the prompt's part of a match does not count
        ([8], [1, 2, 4], {9, 5}),
        ([8], [6, 4], {9, 5}),
    ],
)
def test_a_bad_word_is_banned_at_its_last_token(make_row, sample_rows, prompt, output, banned):
    words = [[9], [1, 2, 3], [4, 5], [1, 2, 4, 6, 7]]
    row = make_row(torch.zeros(50), greedy(), prompt=prompt, output=output, bad_words=words)
    values = processed(sample_rows, row)[0]
    assert {token for token, value in enumerate(values) if value == -INF} == banned


@pytest.mark.parametrize("given", [{}, {"logit_bias": {3: 1.0}}])
def test_end_tokens_wait_for_min_tokens(make_row, sample_rows, given):
    params = greedy(min_tokens=2, stop_token_ids=[11, 400], **given)
    rows = [make_row(torch.zeros(50), params, output=[1] * count, eos=(10, 12)) for count in (0, 1, 2)]
    values = processed(sample_rows, *rows)
    banned = [{token for token, value in enumerate(row) if value == -INF} for row in values]
    assert banned == [{10, 11, 12}, {10, 11, 12}, set()]


def test_logits_processors_run_first_in_order_and_see_the_sequence(make_row, sample_rows):
    seen = []

    def three(prompt, output, logits):
        seen.append((prompt, output))
        logits[5] += 1.0  # writing into the argument is as good as returning a new tensor
        return logits

    class Two:
        def __call__(self, output, logits):
            seen.append(output)
            return logits * 2

    add = functools.partial(lambda scale, output, logits: logits + scale, 3.0)
    params = greedy(logits_processors=[three, Two(), add], logit_bias={5: -1.0})
    row = make_row(torch.zeros(50), params, prompt=[1, 2], output=[3])
    assert processed(sample_rows, row)[0] == [4.0 if i == 5 else 3.0 for i in range(50)]
    assert seen == [([1, 2], [3]), [3]]


def test_logits_processors_may_come_from_an_iterator(make_row, sample_rows):
    params = SamplingParams(temperature=0, logits_processors=iter([lambda output, logits: -logits]))
    for _ in range(2):
        assert sample_rows([make_row(torch.arange(10.0), params)]).tokens == [0]
    with pytest.raises(TypeError, match="logits_processors must be a list"):
        SamplingParams(logits_processors=lambda output, logits: logits)


def test_a_logits_processor_may_keep_what_it_was_given(make_row, sample_rows):
    kept = []
    params = greedy(logits_processors=[lambda output, logits: kept.append(logits) or logits + 1], logit_bias={5: 3.0})
    sample_rows([make_row(torch.zeros(50), params)])
    assert kept[0].tolist() == [0.0] * 50


def test_raw_logprobs_are_those_before_any_edit(make_row, sample_rows, make_logits):
    logits = make_logits(3, 1, VOCAB)[0]
    best = int(logits.argmin())
    given = {"allowed_token_ids": [best], "logits_processors": [lambda output, logits: logits.mul_(3)]}
    rows = [
        make_row(logits, greedy()),
        make_row(logits, greedy(**given)),
        make_row(logits, SamplingParams(logprobs=3, repetition_penalty=2.0)),
    ]
    found = sample_rows(rows)
    assert found.tokens[1] == best
    assert found.logprobs[1].rank == VOCAB
    assert found.logprobs[1].top_logprobs == found.logprobs[0].top_logprobs
    assert found.logprobs[2].top_logprobs == found.logprobs[0].top_logprobs[:3]


def test_a_failing_row_leaves_the_others_alone(make_row, sample_rows, make_logits):
    def broken(output, logits):
        raise KeyError("my table")

    logits = make_logits(2, 12, VOCAB)
    logits[1, 30] = float("nan")
    logits[3] = -INF
    logits[5, 2] = INF
    logits[9, 7] = float("nan")
    params = [SamplingParams(temperature=0.9, top_p=0.9, logprobs=2) for _ in range(12)]
    params[7] = SamplingParams(allowed_token_ids=[4], logprobs=1)
    params[8] = SamplingParams(logits_processors=[broken])
    params[9] = SamplingParams(repetition_penalty=1.2, allowed_token_ids=[4])
    params[10] = SamplingParams(logits_processors=[lambda output, logits: logits[:3]])
    params[11] = SamplingParams(logits_processors=[lambda output, logits: None])
    params[0] = SamplingParams(logits_processors=[lambda output, logits: logits.to("meta")])
    params[2] = SamplingParams(logits_processors=[lambda output, logits: logits.to_sparse()])
    rows = [make_row(logits[i], params[i], seed=i, bad_words=[[4]] if i == 7 else []) for i in range(12)]
    found = sample_rows(rows)
    failed = {
        1: "not numbers",
        3: "not numbers",
        5: "not numbers",
        7: "leave no token",
        8: "raised KeyError: 'my table'",
    }
    failed |= {9: "not numbers", 10: "must return a tensor of shape (50,), got shape (3,)", 11: "got NoneType"}
    failed |= {0: "can't be read", 2: "can't be read"}
    for i, row in enumerate(rows):
        alone = sample_rows([row])
        assert (found.tokens[i], found.logprobs[i]) == (alone.tokens[0], alone.logprobs[0])
        if i in failed:
            assert found.tokens[i] == -1 and found.logprobs[i] is None
            assert failed[i] in found.errors[i] and failed[i] in alone.errors[0]
        else:
            assert found.errors[i] is None and found.tokens[i] >= 0


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"allowed_token_ids": [50]}, "allowed_token_ids holds token id 50, but the model's vocabulary has 50 entries"),
        ({"logit_bias": {99: 1.0}}, "logit_bias holds token id 99"),
        ({"logprobs": 6}, "logprobs=6 asks for 6 per position, but max_logprobs=5"),
        ({"logprobs": -1}, "logprobs=-1 asks for the whole vocabulary"),
        ({"prompt_logprobs": 20}, "prompt_logprobs=20 asks for 20"),
        ({"logits_processors": [lambda logits: logits]}, "must take"),
        ({"logits_processors": [3]}, "must hold callables"),
    ],
)
def test_what_the_model_cannot_give_is_refused_by_name(given, text):
    sampler = Sampler(1, 50, max_logprobs=5)
    with pytest.raises(RequestError, match=text) as caught:
        sampler.admit(0, SamplingParams(**given), seed=0, eos_token_ids=(), bad_words_ids=[], num_prompt=1)
    assert caught.value.param in given
