"""Prompts that are pooled: tasks and parameters, how texts and pairs are cut, long prompts in pieces."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm.errors import RequestError
from vllm.inputs.pooling import Pieces, tokens_of, with_text_before
from vllm.inputs.prepare import Limits, Preparer
from vllm.inputs.prompts import Prompt
from vllm.inputs.tokenizer import FastTokenizer, SlowTokenizer, Tokenizer, load_tokenizer
from vllm.messages import EngineRequest
from vllm.outputs import PoolingOutput, PoolingRequestOutput
from vllm.pooling_params import PooledTexts, Pooling, PoolingParams
from vllm.sampling_params import SamplingParams

LIMITS = Limits(vocab_size=600, max_model_len=32)
EMBEDS = Pooling(("embed", "token_embed"), "LAST")
TEXT = "the tide came in twice a day and nobody in the village thought about it"


@pytest.fixture(scope="module")
def bert() -> Tokenizer:
    """Words, with the marks that BERT puts around texts and pairs."""
    import tokenizers
    from tokenizers import models, pre_tokenizers, processors

    words = ["[UNK]", "[CLS]", "[SEP]", *sorted({*TEXT.split(), *"abcdefghij"})]
    backend = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return FastTokenizer(backend, {})


def prepare(tokenizer: Tokenizer | None, prompts: list[Prompt], pooling: Pooling = EMBEDS, **given: Any) -> Any:
    options = {"task": None, **given}
    params = options.pop("params", None)
    return Preparer(tokenizer, LIMITS).prepare_pooling(prompts, params, pooling=pooling, **options)


def shown(tokenizer: Tokenizer, tokens: list[int]) -> str:
    return tokenizer.decode(tokens, skip_special_tokens=False)


def test_a_prompt_becomes_a_request_that_generates_nothing(bert: Tokenizer) -> None:
    (request,) = prepare(bert, [Prompt("the tide", cache_salt="s")], priority=[3], request_ids=["x"])
    assert shown(bert, request.token_ids) == "[CLS] the tide [SEP]"
    assert (request.id, request.prompt, request.priority, request.cache_salt) == ("x", "the tide", 3, "s")
    assert request.params == SamplingParams(max_tokens=1) and request.token_types == []
    assert request.pooling.task == "embed" and request.pooling.skip_reading_prefix_cache is None


@pytest.mark.parametrize(
    ("pooling_type", "task", "expected"),
    [("LAST", "embed", None), ("LAST", "token_embed", True), ("MEAN", "embed", True), ("CLS", None, True)],
)
def test_the_cache_is_not_read_where_every_state_counts(pooling_type: Any, task: Any, expected: Any) -> None:
    given = PoolingParams()
    (request,) = prepare(None, [Prompt(token_ids=[5])], Pooling(EMBEDS.tasks, pooling_type), task=task, params=given)
    assert request.pooling.skip_reading_prefix_cache is expected
    assert given == PoolingParams(), "the caller's parameters are the caller's"


def test_a_prompt_may_fill_the_context_and_not_more(bert: Tokenizer) -> None:
    assert len(prepare(bert, [Prompt(" ".join("a" * 30))])[0].token_ids) == 32
    message = "prompt 1 has 33 tokens, but max_model_len=32 is the most; shorten it, set truncate_prompt_tokens"
    with pytest.raises(RequestError, match=message):
        prepare(bert, [Prompt("a"), Prompt(" ".join("a" * 31))])
    assert len(prepare(bert, [Prompt(" ".join("a" * 31))], params=PoolingParams(-1))[0].token_ids) == 32


@pytest.mark.parametrize(
    ("params", "pooling", "task", "message"),
    [
        (PoolingParams(), EMBEDS, "classify", "can embed, token_embed, not classify; .* loaded with task='classify'"),
        (PoolingParams(task="token_classify"), EMBEDS, None, "loaded with task='reward'"),
        (
            PoolingParams(task="token_embed"),
            EMBEDS,
            "embed",
            "task='token_embed' of the parameters contradicts 'embed'",
        ),
        (PoolingParams(dimensions=4), EMBEDS, None, "nothing says that the model was trained for shorter"),
        (PoolingParams(dimensions=5), Pooling(("embed",), "LAST", matryoshka=(4, 8)), None, "was trained for 4, 8"),
        (PoolingParams(dimensions=9), Pooling(("embed",), "LAST", width=8, matryoshka=True), None, "more than the 8"),
        (PoolingParams(dimensions=5), Pooling(("classify",), "LAST", num_labels=2), None, "the task is classify"),
    ],
)
def test_what_the_model_cannot_do_is_refused(params: Any, pooling: Pooling, task: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        prepare(None, [Prompt(token_ids=[5])], pooling, params=params, task=task)


def test_a_model_trained_for_shorter_embeddings_gives_them() -> None:
    for matryoshka in (True, (4, 8)):
        pooling = Pooling(("embed",), "LAST", matryoshka=matryoshka)
        (request,) = prepare(None, [Prompt(token_ids=[5])], pooling, params=PoolingParams(dimensions=4))
        assert request.pooling.dimensions == 4


@pytest.mark.parametrize(
    ("side", "keep", "expected"),
    [
        ("right", 5, "[CLS] the tide came [SEP]"),
        ("left", 5, "[CLS] thought about it [SEP]"),
        ("right", 3, "[CLS] the [SEP]"),
        ("right", 99, f"[CLS] {TEXT} [SEP]"),
    ],
)
def test_a_text_is_cut_between_its_marks(bert: Tokenizer, side: Any, keep: int, expected: str) -> None:
    assert shown(bert, tokens_of(bert.encode_pairs([TEXT])[0], keep, side).ids) == expected


def test_ids_are_cut_without_asking_what_they_are(bert: Tokenizer) -> None:
    params = PoolingParams(truncate_prompt_tokens=2)
    assert prepare(bert, [Prompt(token_ids=[5, 6, 7])], params=params)[0].token_ids == [5, 6]
    with pytest.raises(RequestError, match="truncate_prompt_tokens=2 leaves no room for the text beside 2 special"):
        prepare(bert, [Prompt("a b")], params=params)


def test_a_pair_has_the_tokenizers_form_and_its_types(bert: Tokenizer) -> None:
    pooling = dataclasses.replace(EMBEDS, texts=PooledTexts(num_token_types=2))
    (request,) = prepare(bert, [Prompt("the tide", pair="came in")], pooling)
    assert shown(bert, request.token_ids) == "[CLS] the tide [SEP] came in [SEP]"
    assert request.token_types == [0, 0, 0, 0, 1, 1, 1]
    (without,) = prepare(
        bert, [Prompt("the tide", pair="came in")], dataclasses.replace(pooling, texts=PooledTexts(num_token_types=1))
    )
    assert without.token_ids == request.token_ids and without.token_types == []


def test_texts_are_lowered_where_the_model_wants_that(bert: Tokenizer) -> None:
    prompts = [Prompt("The TIDE", pair="Came"), Prompt("The TIDE")]
    pair, text = prepare(bert, prompts, dataclasses.replace(EMBEDS, texts=PooledTexts(lower_case=True)))
    assert shown(bert, pair.token_ids) == "[CLS] the tide [SEP] came [SEP]"
    assert shown(bert, text.token_ids) == "[CLS] the tide [SEP]" and text.prompt == "The TIDE"
    assert "[UNK]" in shown(bert, prepare(bert, prompts)[1].token_ids)


@given(first=st.integers(0, 12), second=st.integers(0, 12), keep=st.integers(4, 24))
def test_of_a_pair_the_longer_text_is_cut_first(first: int, second: int, keep: int) -> None:
    """The lengths are those of the tokenizers library's own truncation."""
    import tokenizers
    from tokenizers import models, pre_tokenizers, processors

    backend = tokenizers.Tokenizer(models.WordLevel({"[CLS]": 0, "[SEP]": 1, "a": 2, "b": 3}, unk_token="[SEP]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.BertProcessing(("[SEP]", 1), ("[CLS]", 0))
    pair = (" ".join("a" * first), " ".join("b" * second))
    found = tokens_of(FastTokenizer(backend, {}).encode_pairs([pair])[0], keep, "right")
    backend.enable_truncation(keep)
    expected = backend.encode(*pair)
    assert (found.ids, found.types) == (expected.ids, expected.type_ids)


def test_a_slow_tokenizer_writes_pairs_as_a_fast_one_does(tmp_path: Path) -> None:
    from transformers import BertTokenizerLegacy

    words = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", *sorted({*TEXT.split()})]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    slow = SlowTokenizer(BertTokenizerLegacy(str(tmp_path / "vocab.txt")), {})
    for text in (TEXT, ("the tide", "came in twice")):
        (encoding,) = slow.encode_pairs([text])
        marks = [place for place, source in enumerate(encoding.sequence_ids) if source is None]
        assert [encoding.ids[place] for place in marks] == [1, 2] + [2] * (text is not TEXT)
        assert encoding.sequence_ids.count(1) == (0 if text is TEXT else 3)
    assert encoding.type_ids == [0, 0, 0, 0, 1, 1, 1, 1]


def test_the_side_that_loses_tokens_is_the_tokenizers(tokenizer_folders: dict[str, Path], tmp_path: Path) -> None:
    import json

    for file in tokenizer_folders["byte level"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert load_tokenizer(tmp_path).truncation_side == "right"
    config = json.loads((tmp_path / "tokenizer_config.json").read_text()) | {"truncation_side": "left"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    left = load_tokenizer(tmp_path)
    assert left.truncation_side == "left"
    (request,) = prepare(left, [Prompt("the tide came in")], params=PoolingParams(truncate_prompt_tokens=1))
    assert request.token_ids == left.encode("the tide came in")[-1:]


def test_texts_before_prompts_go_by_name() -> None:
    given = PooledTexts(prompts=(("query", "query: "), ("passage", "passage: ")))
    prompts = [Prompt("a"), Prompt(token_ids=[5])]

    def texts(given: PooledTexts, *names: str) -> list[str | None]:
        return [prompt.text for prompt in with_text_before(prompts, given, *names)]

    assert texts(given) == ["a", None]
    assert texts(given, "query") == ["query: a", None]
    assert texts(given, "document", "passage") == ["passage: a", None]
    default = dataclasses.replace(given, default_prompt="passage")
    assert texts(default) == texts(default, "nonsense") == ["passage: a", None]
    with pytest.raises(RequestError, match="no prompt called 'other'; it has query, passage"):
        texts(dataclasses.replace(given, default_prompt="other"))


def test_long_prompts_are_embedded_in_pieces_and_averaged() -> None:
    pooling = dataclasses.replace(EMBEDS, texts=PooledTexts(max_embed_len=80))
    prompts = [Prompt(token_ids=[5] * 3), Prompt(token_ids=list(range(70)))]
    requests = prepare(None, prompts, pooling)
    pieces = Pieces(requests, 32, pooling)
    assert [len(piece.token_ids) for piece in pieces.requests] == [3, 32, 32, 6]
    assert len({piece.id for piece in pieces.requests}) == 4 and pieces.requests[0].id == requests[0].id
    whole = [token for piece in pieces.requests[1:] for token in piece.token_ids]
    assert whole == requests[1].token_ids

    def output(request: EngineRequest, *data: float) -> PoolingRequestOutput[PoolingOutput]:
        pooled = PoolingOutput(np.array(data, np.float32))
        return PoolingRequestOutput(request.id, pooled, request.token_ids, num_cached_tokens=1)

    rows = [(0.6, 0.8), (1, 0), (0, 1), (1, 0)]
    short, long = pieces.join([output(r, *row) for r, row in zip(pieces.requests, rows, strict=True)])
    np.testing.assert_array_equal(short.outputs.data, np.array([0.6, 0.8], np.float32))
    mean = np.array([38, 32]) / 70
    np.testing.assert_allclose(long.outputs.data, mean / np.linalg.norm(mean), rtol=1e-6)
    assert (long.request_id, long.prompt_token_ids, long.num_cached_tokens) == (requests[1].id, list(range(70)), 3)
    requests[1].pooling.normalize = False
    long = pieces.join([output(r, *row) for r, row in zip(pieces.requests, rows, strict=True)])[1]
    np.testing.assert_allclose(long.outputs.data, mean, rtol=1e-6)
    with pytest.raises(RequestError, match="prompt 0 has 81 tokens, but max_embed_len=80 is the most"):
        prepare(None, [Prompt(token_ids=[5] * 81)], pooling)
    with pytest.raises(RequestError, match="max_model_len=32 is the most"):
        prepare(None, [Prompt(token_ids=[5] * 80)], pooling, task="token_embed")


def test_a_piece_that_failed_fails_its_prompt() -> None:
    pooling = dataclasses.replace(EMBEDS, texts=PooledTexts(max_embed_len=80))
    pieces = Pieces(prepare(None, [Prompt(token_ids=[5] * 40)], pooling), 32, pooling)
    outputs = [PoolingRequestOutput(r.id, PoolingOutput(np.ones(2, np.float32)), r.token_ids) for r in pieces.requests]
    outputs[1].error = "not finite"
    (output,) = pieces.join(outputs)
    assert output.error == "not finite" and output.outputs.data.size == 0
