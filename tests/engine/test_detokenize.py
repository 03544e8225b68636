"""Text as it grows: nothing split, nothing lost, nothing of the prompt, and stop strings across every border."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vllm.engine.detokenize import Detokenizer, StopHit
from vllm.engine.text_stream import WindowStream, text_stream
from vllm.inputs.tokenizer import Tokenizer, load_tokenizer
from vllm.sampling_params import SamplingParams

KINDS = ["byte level", "sentencepiece", "wordpiece"]
hypothesis_settings = settings(max_examples=150, deadline=None)


@pytest.fixture(scope="module")
def loaded(tokenizer_folders: dict[str, Path]) -> dict[str, Tokenizer]:
    return {kind: load_tokenizer(folder) for kind, folder in tokenizer_folders.items()}


def plain(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def split(ids: list[int], cuts: list[int]) -> list[list[int]]:
    borders = sorted({0, len(ids), *(cut % (len(ids) + 1) for cut in cuts)})
    return [ids[a:b] for a, b in zip(borders, borders[1:], strict=False)]


def run(tokenizer: Tokenizer, prompt: list[int], chunks: list[list[int]], **params: Any) -> tuple[Detokenizer, str]:
    """Push the chunks; return the detokenizer and the joined deltas."""
    detokenizer = Detokenizer(tokenizer, prompt, SamplingParams(max_tokens=None, **params))
    deltas = ""
    for chunk in chunks:
        if detokenizer.push(chunk) is not None:
            break
        deltas += detokenizer.take_delta()
        assert deltas == detokenizer.text
    detokenizer.finish()
    deltas += detokenizer.take_delta()
    assert deltas == detokenizer.text
    return detokenizer, deltas


def mixed_runs(tokenizer: Any, ids: list[int], skip: bool) -> bool:
    """Whether a run of byte tokens holds whole characters and broken ones: decoding it in one go spoils both."""
    runs = [b""]
    for token in ids:
        spelled = tokenizer.backend.id_to_token(token)
        if spelled is None or (skip and token in tokenizer.special_ids):
            continue
        if spelled.startswith("<0x"):
            runs[-1] += tokenizer.token_bytes(token)
        else:
            runs.append(b"")
    texts = [run.decode("utf-8", "replace") for run in runs]
    return any("\ufffd" in text and text.strip("\ufffd") for text in texts)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("skip", [True, False])
@hypothesis_settings
@given(text=st.text(max_size=40), cuts=st.lists(st.integers(0, 99), max_size=5))
def test_text_in_steps_equals_text_in_one_go(
    kind: str, skip: bool, text: str, cuts: list[int], loaded: dict[str, Tokenizer]
) -> None:
    ids = plain(loaded[kind], text)
    _, got = run(loaded[kind], [], split(ids, cuts), skip_special_tokens=skip)
    assert got == loaded[kind].decode(ids, skip)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("skip", [True, False])
@hypothesis_settings
@given(data=st.data(), cuts=st.lists(st.integers(0, 99), max_size=5))
def test_random_ids_give_the_same_text_in_steps_and_in_one_go(
    kind: str, skip: bool, data: st.DataObject, cuts: list[int], loaded: dict[str, Tokenizer]
) -> None:
    tokenizer = loaded[kind]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=30))
    _, got = run(tokenizer, [], split(ids, cuts), skip_special_tokens=skip)
    assert got == run(tokenizer, [], [[token] for token in ids], skip_special_tokens=skip)[1]
    if kind != "sentencepiece" or not mixed_runs(tokenizer, ids, skip):
        assert got == tokenizer.decode(ids, skip)


@pytest.mark.parametrize("kind", KINDS)
@hypothesis_settings
@given(prompt=st.text(max_size=15), text=st.text(max_size=25))
def test_output_after_a_prompt_is_the_rest_of_the_whole_text(
    kind: str, prompt: str, text: str, loaded: dict[str, Tokenizer]
) -> None:
    tokenizer = loaded[kind]
    prompt_ids, ids = tokenizer.encode(prompt), plain(tokenizer, text)
    _, got = run(tokenizer, prompt_ids, [[token] for token in ids])
    assert tokenizer.decode(prompt_ids) + got == tokenizer.decode(prompt_ids + ids)


@pytest.mark.parametrize("kind", KINDS)
def test_a_first_word_keeps_its_space(kind: str, loaded: dict[str, Tokenizer]) -> None:
    tokenizer = loaded[kind]
    ids = plain(tokenizer, "the tide")
    for cut in range(1, len(ids)):
        _, got = run(tokenizer, ids[:cut], [ids[cut:]])
        assert tokenizer.decode(ids[:cut]) + got == "the tide"


@pytest.mark.parametrize("kind", ["byte level", "sentencepiece"])
@pytest.mark.parametrize("window", [False, True])
def test_a_prompt_that_ends_inside_a_character_does_not_show(
    kind: str, window: bool, loaded: dict[str, Tokenizer]
) -> None:
    tokenizer = loaded[kind]
    word, euro = plain(tokenizer, "tide"), plain(tokenizer, "\U0001f30a")[-4:]
    make = WindowStream if window else text_stream
    for cut in range(1, 4):
        stream = make(tokenizer, word + euro[:cut], True)
        got = "".join(map(stream.step, euro[cut:] + plain(tokenizer, "\ntide"))) + stream.flush()
        assert "\U0001f30a" not in got and got.startswith("\ufffd") and got.endswith("tide")


@pytest.mark.parametrize("kind", ["byte level", "sentencepiece"])
@pytest.mark.parametrize("window", [False, True])
def test_a_stray_byte_shows_as_a_replacement_character(kind: str, window: bool, loaded: dict[str, Tokenizer]) -> None:
    tokenizer = loaded[kind]
    lead = plain(tokenizer, "\U0001f30a")[-4]  # the first byte of four
    stream = (WindowStream if window else text_stream)(tokenizer, [], True)
    early = "".join(stream.step(lead) for _ in range(20))
    assert 8 <= len(early) < 20 and set(early) == {"\ufffd"}
    assert early + stream.flush() == "\ufffd" * 20
    assert stream.flush() == ""


@pytest.mark.parametrize("kind", ["byte level", "sentencepiece"])
def test_no_half_character_is_ever_shown(kind: str, loaded: dict[str, Tokenizer]) -> None:
    text = "tide 潮水 \U0001f30a\U0001f468\u200d\U0001f469 ß"
    detokenizer = Detokenizer(loaded[kind], [], SamplingParams())
    for token in plain(loaded[kind], text):
        detokenizer.push([token])
        assert text.startswith(detokenizer.text)
    assert detokenizer.text == text


@pytest.mark.parametrize("kind", KINDS)
@hypothesis_settings
@example(prompt_text=" ", text="0")
@given(
    prompt_text=st.text(st.characters(codec="utf-8", exclude_characters="\ufffd"), max_size=10),
    text=st.text(max_size=30),
)
def test_a_tokenizer_without_byte_rule_gives_the_same_text(
    kind: str, prompt_text: str, text: str, loaded: dict[str, Tokenizer]
) -> None:
    tokenizer = loaded[kind]
    prompt = tokenizer.encode(prompt_text)
    ids = plain(tokenizer, text)
    window, usual = WindowStream(tokenizer, prompt, True), text_stream(tokenizer, prompt, True)
    assert "".join(map(window.step, ids)) + window.flush() == "".join(map(usual.step, ids)) + usual.flush()


def test_a_slow_tokenizer_streams_too(tmp_path: Path) -> None:
    from transformers import ByT5Tokenizer

    ByT5Tokenizer().save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    ids = plain(tokenizer, "潮 tide")
    assert run(tokenizer, plain(tokenizer, "x"), [[token] for token in ids])[1] == "潮 tide"


def first_complete(text: str, stops: list[str]) -> tuple[int, str] | None:
    """The stop string that is complete first, the longest of several, and where it ends."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return end, max(found, key=len)
    return None


STOPS = st.lists(st.text(alphabet="ab ", min_size=1, max_size=4), min_size=1, max_size=3)


@hypothesis_settings
@given(text=st.text(alphabet="ab t", max_size=40), stops=STOPS, keep=st.booleans(),
       cuts=st.lists(st.integers(0, 99), max_size=6))  # fmt: skip
def test_stop_strings_end_the_text_at_the_same_place_for_any_split(
    text: str, stops: list[str], keep: bool, cuts: list[int], loaded: dict[str, Tokenizer]
) -> None:
    ids = plain(loaded["byte level"], text)
    detokenizer, got = run(loaded["byte level"], [], split(ids, cuts), stop=stops, include_stop_str_in_output=keep)
    found = first_complete(text, stops)
    assert got == (text if found is None else text[: found[0] if keep else found[0] - len(found[1])])
    assert detokenizer.push([ids[0]] if ids else []) is None and detokenizer.text == got


def test_a_stop_string_across_tokens_names_itself_and_its_last_token(loaded: dict[str, Tokenizer]) -> None:
    tokenizer = loaded["byte level"]
    ids = [token for character in "one STOP two" for token in plain(tokenizer, character)]
    detokenizer = Detokenizer(tokenizer, [], SamplingParams(stop=["STOP"]))
    assert detokenizer.push(ids[:5]) is None
    assert detokenizer.push(ids[5:]) == StopHit("STOP", 3)
    assert detokenizer.text == "one "


def test_what_may_begin_a_stop_string_is_held_until_decided(loaded: dict[str, Tokenizer]) -> None:
    tokenizer = loaded["byte level"]

    def deltas(text: str, **params: Any) -> list[str]:
        detokenizer = Detokenizer(tokenizer, [], SamplingParams(stop=["\n\nQ:"], **params))
        result = []
        for character in text:
            detokenizer.push(plain(tokenizer, character))
            result.append(detokenizer.take_delta())
        detokenizer.finish()
        return [*result, detokenizer.take_delta()]

    assert deltas("a\n\nQz") == ["a", "", "", "", "\n\nQz", ""]
    assert deltas("a\n\n\nQ:") == ["a", "", "", "\n", "", "", ""]
    assert deltas("a\n\n") == ["a", "", "", "\n\n"]
    assert deltas("a\n\nQ:", include_stop_str_in_output=True) == ["a", "\n", "\n", "Q", ":", ""]


def test_no_stop_string_ends_the_text_within_min_tokens(loaded: dict[str, Tokenizer]) -> None:
    tokenizer = loaded["byte level"]
    ids = [plain(tokenizer, character)[0] for character in "xSxxS"]

    def hits(min_tokens: int) -> StopHit | None:
        return Detokenizer(tokenizer, [], SamplingParams(stop="S", min_tokens=min_tokens)).push(ids)

    assert hits(0) == hits(1) == StopHit("S", 2)
    assert hits(2) == hits(4) == StopHit("S", 5)
    assert hits(5) is None


def test_special_tokens_are_left_out_unless_asked_for(loaded: dict[str, Tokenizer]) -> None:
    tokenizer = loaded["byte level"]
    ids = plain(tokenizer, "a<|im_end|>b")
    assert run(tokenizer, [], [ids])[1] == "ab"
    assert run(tokenizer, [], [ids], skip_special_tokens=False)[1] == "a<|im_end|>b"


def test_without_detokenizing_there_is_no_text(loaded: dict[str, Tokenizer]) -> None:
    assert run(loaded["byte level"], [], [[100, 101]], detokenize=False)[1] == ""
    assert run(None, [], [[100, 101]])[1] == ""  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_the_work_per_token_does_not_grow_with_the_text(kind: str, loaded: dict[str, Tokenizer]) -> None:
    tokenizer = loaded[kind]
    decoded: list[int] = []

    class Counting:
        byte_rule = None
        special_ids = tokenizer.special_ids

        def decode(self, token_ids: list[int], skip_special_tokens: bool) -> str:
            decoded.append(len(token_ids))
            return tokenizer.decode(token_ids, skip_special_tokens)

    special = min(tokenizer.special_ids)
    stream = WindowStream(Counting(), [], True)  # type: ignore[arg-type]
    for token in [*plain(tokenizer, "the tide \U0001f30a " * 50), *[special] * 200, *[tokenizer.vocab_size + 1] * 200]:
        stream.step(token)
    assert max(decoded) <= 20
