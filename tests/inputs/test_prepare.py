"""From prompts and parameters to engine requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from vllm.errors import ModelError, RequestError
from vllm.inputs.prepare import Limits, Preparer, find_eos_token_ids, spellings
from vllm.inputs.prompts import Prompt, parse_prompts
from vllm.inputs.tokenizer import Tokenizer, load_tokenizer
from vllm.messages import EngineRequest
from vllm.sampling_params import BeamSearchParams, SamplingParams

LIMITS = Limits(vocab_size=600, max_model_len=32, max_logprobs=20)


@pytest.fixture(scope="module")
def byte_level(tokenizer_folders: dict[str, Path]) -> Tokenizer:
    return load_tokenizer(tokenizer_folders["byte level"])


@pytest.fixture(scope="module")
def sentencepiece(tokenizer_folders: dict[str, Path]) -> Tokenizer:
    return load_tokenizer(tokenizer_folders["sentencepiece"])


def prepare(tokenizer: Tokenizer | None, prompts: Any, params: Any = None, **options: Any) -> list[EngineRequest]:
    return Preparer(tokenizer, LIMITS).prepare(parse_prompts(prompts), params or SamplingParams(), **options)


def test_a_prompt_becomes_a_request(sentencepiece: Tokenizer) -> None:
    params = SamplingParams(temperature=0.5)
    preparer = Preparer(sentencepiece, LIMITS, eos_token_ids=(2,))
    first, second = preparer.prepare([Prompt("the tide"), Prompt("shown", [5, 6], cache_salt="s")], params)
    assert first.token_ids == sentencepiece.encode("the tide") and first.token_ids[0] == sentencepiece.bos_token_id
    assert (first.id, first.prompt, first.params, first.eos_token_ids) == ("0", "the tide", params, (2,))
    assert (second.id, second.prompt, second.token_ids, second.cache_salt) == ("1", "shown", [5, 6], "s")
    assert preparer.prepare([Prompt("more")], params)[0].id == "2"
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(first), type=EngineRequest).token_ids == first.token_ids


def test_parameters_may_be_one_for_all_or_one_for_each(byte_level: Tokenizer) -> None:
    each = [SamplingParams(max_tokens=1), SamplingParams(max_tokens=2)]
    requests = prepare(byte_level, ["a", "b"], each, priority=[3, 4], request_ids=["x", "y"])
    assert [(r.params.max_tokens, r.priority, r.id) for r in requests] == [(1, 3, "x"), (2, 4, "y")]
    with pytest.raises(RequestError, match="3 prompts but 2 sampling params"):
        prepare(byte_level, ["a", "b", "c"], each)
    with pytest.raises(RequestError, match="1 prompts but 2 priorities"):
        prepare(byte_level, ["a"], priority=[1, 2])


def test_a_seed_is_the_requests_own_or_drawn_from_the_engines(byte_level: Tokenizer) -> None:
    def seeds(engine_seed: int) -> list[int]:
        preparer = Preparer(byte_level, LIMITS, seed=engine_seed)
        requests = preparer.prepare(parse_prompts(["a"] * 50), SamplingParams())
        return [request.seed for request in requests]

    assert seeds(0) == seeds(0) and len({*seeds(0), *seeds(1)}) == 100
    assert all(0 <= seed < 2**63 for seed in seeds(0))
    assert [request.seed for request in prepare(byte_level, ["a", "b"], SamplingParams(seed=-7))] == [-7, -7]


def test_an_empty_prompt_is_named_by_its_position(byte_level: Tokenizer, sentencepiece: Tokenizer) -> None:
    with pytest.raises(RequestError, match="prompt 3 is empty"):
        prepare(byte_level, ["a", "b", "c", ""])
    assert prepare(sentencepiece, [""])[0].token_ids == [sentencepiece.bos_token_id]


def test_text_that_is_not_unicode_is_named_by_its_position(byte_level: Tokenizer) -> None:
    with pytest.raises(RequestError, match="prompt 1 has an unpaired surrogate"):
        prepare(byte_level, ["a", "b\udfff"])


def test_a_prompt_must_leave_room_for_one_token(byte_level: Tokenizer) -> None:
    assert len(prepare(byte_level, [5] * 31)[0].token_ids) == 31
    with pytest.raises(RequestError) as error:
        prepare(byte_level, [[5], [5] * 32])
    assert str(error.value) == (
        "prompt 1 has 32 tokens, but max_model_len=32 leaves room for 31; shorten it, set truncate_prompt_tokens, or "
        "raise max_model_len"
    )
    with pytest.raises(RequestError, match="has 2,049 tokens"):
        prepare(byte_level, [5] * 2049)


def test_truncation_keeps_the_last_tokens(byte_level: Tokenizer) -> None:
    prompt = list(range(10, 110))
    assert prepare(byte_level, prompt, SamplingParams(truncate_prompt_tokens=3))[0].token_ids == [107, 108, 109]
    assert prepare(byte_level, prompt, SamplingParams(truncate_prompt_tokens=-1))[0].token_ids == prompt[-31:]
    assert prepare(byte_level, [1, 2], SamplingParams(truncate_prompt_tokens=9))[0].token_ids == [1, 2]
    with pytest.raises(RequestError, match="leaves room for 31"):
        prepare(byte_level, prompt, SamplingParams(truncate_prompt_tokens=50))


def test_token_ids_are_checked_against_the_models_vocabulary(byte_level: Tokenizer) -> None:
    assert byte_level.vocab_size < 599
    assert prepare(byte_level, [599])[0].token_ids == [599]
    for wrong in (600, 999999, -1):
        with pytest.raises(RequestError, match=rf"prompt 0 has token id {wrong} at index 1, .* 600 entries"):
            prepare(byte_level, [1, wrong])


@pytest.mark.parametrize(
    ("params", "words"),
    [
        (SamplingParams(allowed_token_ids=[1, 600]), "allowed_token_ids holds token id 600"),
        (SamplingParams(logit_bias={700: 1.0}), "logit_bias holds token id 700"),
        (SamplingParams(logprobs=21), "logprobs=21 asks for 21 per position, but max_logprobs=20"),
        (SamplingParams(prompt_logprobs=-1), "prompt_logprobs=-1 asks for the whole vocabulary, 600 entries,"),
        (SamplingParams(logprobs=601), "logprobs=601 is more than the vocabulary of 600"),
        (SamplingParams(bad_words=["fine", " "]), "bad_words holds ' '"),
        (BeamSearchParams(beam_width=101, max_tokens=1), None),
    ],
)
def test_parameters_beyond_the_model_are_refused_by_name(params: Any, words: str | None, byte_level: Tokenizer) -> None:
    if words is None:
        prepare(byte_level, ["a"], params)
        return
    with pytest.raises(RequestError, match=words):
        prepare(byte_level, ["a"], params)


def test_something_else_than_parameters_is_refused(byte_level: Tokenizer) -> None:
    with pytest.raises(TypeError, match="got 0.5"):
        prepare(byte_level, ["a"], 0.5)


@pytest.mark.parametrize("priority", ["high", None, 0.5, True])
def test_a_priority_that_has_no_order_is_refused(priority: Any, byte_level: Tokenizer) -> None:
    with pytest.raises(TypeError, match=f"priority must be an integer, got {priority!r}"):
        Preparer(byte_level, LIMITS).prepare([Prompt("a"), Prompt("b")], SamplingParams(), priority=[1, priority])


def test_max_logprobs_can_be_lifted(byte_level: Tokenizer) -> None:
    unlimited = Preparer(byte_level, Limits(600, 32, max_logprobs=-1))
    assert unlimited.prepare([Prompt("a")], SamplingParams(logprobs=-1))[0].params.logprobs == -1


def test_nothing_is_numbered_when_one_prompt_is_refused(byte_level: Tokenizer) -> None:
    preparer = Preparer(byte_level, LIMITS)
    with pytest.raises(RequestError):
        preparer.prepare([Prompt("a"), Prompt("")], SamplingParams())
    assert preparer.prepare([Prompt("a")], SamplingParams())[0].id == "0"


def test_a_beam_search_brings_what_both_kinds_share(byte_level: Tokenizer) -> None:
    beam = BeamSearchParams(
        beam_width=4, max_tokens=7, ignore_eos=True, temperature=0.5, include_stop_str_in_output=True
    )
    (request,) = prepare(byte_level, ["a"], beam)
    assert request.beam is beam
    shared = request.params
    assert (shared.max_tokens, shared.ignore_eos, shared.temperature, shared.n) == (7, True, 0.5, 1)
    assert shared.include_stop_str_in_output and shared.skip_special_tokens


def test_an_engine_without_tokenizer_takes_token_ids_only() -> None:
    assert prepare(None, [1, 2])[0].token_ids == [1, 2]
    with pytest.raises(RequestError, match="prompt 1 is a text"):
        prepare(None, [[1], "a"])
    with pytest.raises(RequestError, match="stop needs a tokenizer"):
        prepare(None, [1], SamplingParams(stop="x"))


@pytest.mark.parametrize("kind", ["byte level", "sentencepiece", "wordpiece"])
@pytest.mark.parametrize("word", ["tide", "  tide ", "fisher tide"])
def test_a_bad_word_is_spelled_with_and_without_a_space(
    kind: str, word: str, tokenizer_folders: dict[str, Path]
) -> None:
    tokenizer = load_tokenizer(tokenizer_folders[kind])
    (request,) = prepare(tokenizer, ["a"], SamplingParams(bad_words=[word]))
    variants = request.bad_words_ids
    texts = {"".join(tokenizer.token_text(token) for token in ids) for ids in variants}
    assert " " + word.strip() in texts
    assert word.strip() in texts or kind == "wordpiece"
    assert len(variants) == len({tuple(ids) for ids in variants})
    for text in (f"the {word.strip()}", word.strip()):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert any(ids[-len(variant) :] == variant for variant in variants)


def test_single_token_words_give_single_tokens(byte_level: Tokenizer) -> None:
    assert [len(ids) for ids in spellings("the", byte_level)][1] == 1


def test_end_tokens_come_from_tokenizer_and_configs(byte_level: Tokenizer) -> None:
    own = byte_level.eos_token_id
    assert find_eos_token_ids({"eos_token_id": [7, 8]}, {"eos_token_id": 9}, byte_level) == (own, 7, 8)
    assert find_eos_token_ids({"eos_token_id": own}, {}, byte_level) == (own,)
    assert find_eos_token_ids({}, {"eos_token_id": 9}, None) == (9,)
    assert find_eos_token_ids({}, {}, None) == ()


def test_a_negative_end_token_is_none_and_a_text_is_refused() -> None:
    assert find_eos_token_ids({}, {"eos_token_id": [5, -1]}, None) == (5,)
    assert find_eos_token_ids({"eos_token_id": -1}, {}, None) == ()
    for wrong in ("2", ["2"], 1.5, True):
        with pytest.raises(ModelError, match="eos_token_id=.* must be a token id"):
            find_eos_token_ids({"eos_token_id": wrong}, {}, None)
