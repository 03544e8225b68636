"""Sampling parameters are checked where they are made."""

from __future__ import annotations

from typing import Any

import pytest

from vllm import BeamSearchParams, SamplingParams
from vllm.errors import RequestError


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"n": 0}, RequestError, "n must be between 1 and 128, got 0"),
        ({"n": 129}, RequestError, "n must be between 1 and 128, got 129"),
        ({"n": True}, TypeError, "n must be an integer, got True"),
        ({"n": 3, "best_of": 2}, RequestError, "best_of must be between n=3 and 128, got 2"),
        ({"n": 2, "temperature": 0}, RequestError, "greedy sampling gives the same output 2 times"),
        ({"temperature": -0.1}, RequestError, "temperature must be at least 0, got -0.1"),
        ({"temperature": float("nan")}, RequestError, "temperature must be finite, got nan"),
        ({"temperature": "hot"}, TypeError, "temperature must be a number, got 'hot'"),
        ({"top_p": 0}, RequestError, r"top_p must be in \(0, 1\], got 0"),
        ({"top_p": 1.1}, RequestError, r"top_p must be in \(0, 1\], got 1.1"),
        ({"top_k": -2}, RequestError, "top_k must be at least 1, or 0 or -1 for no limit, got -2"),
        ({"top_k": 1.5}, TypeError, "top_k must be an integer, got 1.5"),
        ({"min_p": 2}, RequestError, r"min_p must be in \[0, 1\], got 2"),
        ({"presence_penalty": 2.1}, RequestError, r"presence_penalty must be in \[-2, 2\], got 2.1"),
        ({"frequency_penalty": -3}, RequestError, r"frequency_penalty must be in \[-2, 2\], got -3"),
        ({"repetition_penalty": 0}, RequestError, "repetition_penalty must be greater than 0, got 0"),
        ({"seed": 2**63}, RequestError, "seed must be a 64-bit integer"),
        ({"max_tokens": 0}, RequestError, "max_tokens must be at least 1, got 0"),
        ({"min_tokens": -1}, RequestError, "min_tokens must be at least 0, got -1"),
        ({"min_tokens": 9, "max_tokens": 8}, RequestError, "min_tokens must be at most max_tokens=8, got 9"),
        ({"logprobs": -2}, RequestError, "logprobs must be at least 0, or -1 for the whole vocabulary, got -2"),
        ({"prompt_logprobs": -2}, RequestError, "prompt_logprobs must be at least 0"),
        ({"truncate_prompt_tokens": 0}, RequestError, "truncate_prompt_tokens must be at least 1, or -1"),
        ({"stop": [""]}, RequestError, "stop must not hold an empty string"),
        ({"stop": [3]}, TypeError, "stop must hold str values, got 3"),
        ({"stop": ["x"] * 65}, RequestError, "stop must be at most 64 strings, got 65"),
        ({"stop": "x", "detokenize": False}, RequestError, "use stop_token_ids instead"),
        ({"stop_token_ids": ["x"]}, TypeError, "stop_token_ids must hold int values, got 'x'"),
        ({"bad_words": "x"}, TypeError, "bad_words must be a list, got 'x'"),
        ({"allowed_token_ids": []}, RequestError, "allowed_token_ids must not be empty"),
        (
            {"allowed_token_ids": [-1]},
            RequestError,
            "allowed_token_ids must be made of token ids of at least 0, got -1",
        ),
        ({"logit_bias": [3]}, TypeError, r"logit_bias must be a dict from token ids to numbers, got \[3\]"),
        ({"logit_bias": {3: float("inf")}}, RequestError, "logit_bias must hold finite numbers, got inf"),
        ({"logit_bias": {"a": 1.0}}, TypeError, "logit_bias must hold token ids, got 'a'"),
        ({"temprature": 1}, TypeError, "no parameter 'temprature'. Did you mean 'temperature'?"),
    ],
)
def test_what_cannot_work_is_refused_by_name(given: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SamplingParams(**given)


def test_equivalent_spellings_give_equal_parameters() -> None:
    assert SamplingParams(stop="x", seed=-1, logprobs=True) == SamplingParams(stop=["x"], logprobs=1)
    assert SamplingParams(logit_bias={"3": 200}).logit_bias == {3: 100.0}
    assert SamplingParams.from_optional(top_p=None, top_k=3) == SamplingParams(top_k=3)
    params = SamplingParams(stop=["x"], logit_bias={3: 1.0})
    assert params.clone() == params and params.clone() is not params


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"beam_width": 0, "max_tokens": 1}, RequestError, "beam_width must be at least 1, got 0"),
        ({"beam_width": 129, "max_tokens": 1}, RequestError, "beam_width must be at most 128, got 129"),
        ({"beam_width": 1, "max_tokens": 1.5}, TypeError, "max_tokens must be an integer, got 1.5"),
        ({"beam_width": 1, "max_tokens": 1, "temperature": -1}, RequestError, "temperature must be at least 0, got -1"),
        ({"beam_width": 1, "max_tokens": 1, "length_penalty": float("inf")}, RequestError, "length_penalty must be"),
        ({"beam_widht": 1, "max_tokens": 1}, TypeError, "Did you mean 'beam_width'?"),
    ],
)
def test_a_beam_search_that_cannot_work_is_refused(given: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        BeamSearchParams(**given)
