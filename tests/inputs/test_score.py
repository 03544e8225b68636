"""Scores of pairs: which texts meet, how a pair is written, and what is made of the results."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.entrypoints.pooled import CLASSIFIES, EMBEDS, LATE, RERANKS, REWARDS, output_of, vectors
from vllm.errors import RequestError
from vllm.inputs.chat import ChatRenderer
from vllm.inputs.prepare import Limits, Preparer
from vllm.inputs.prompts import Prompt
from vllm.inputs.score import Scorer, Scoring, score_task, texts_of
from vllm.inputs.tokenizer import Tokenizer, load_tokenizer
from vllm.pooling_params import PooledTexts, Pooling, PoolingParams

TEMPLATE = "Q:{{ messages[0].content }} D:{{ (messages | selectattr('role', 'eq', 'document') | first).content }}!"


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folders: dict[str, Path]) -> Tokenizer:
    return load_tokenizer(tokenizer_folders["byte level"])


def scoring(
    tokenizer: Tokenizer, pooling: Pooling, queries: Any, documents: Any, renderer: Any = None, **options: Any
) -> Scoring:
    renderer = renderer or ChatRenderer("tiny", {}, {})
    scorer = Scorer(Preparer(tokenizer, Limits(600, 64)), pooling, renderer)
    params = options.pop("params", PoolingParams())
    return scorer.prepare(texts_of(queries, "queries"), texts_of(documents, "documents"), params, **options)


def texts(tokenizer: Tokenizer, found: Scoring) -> list[str]:
    return [tokenizer.decode(request.token_ids) for request in found.requests]


@pytest.mark.parametrize(
    ("queries", "documents", "pairs"),
    [
        ("a", "x", ["ax"]),
        ("a", ["x"], ["ax"]),
        (["a"], ["x", "y", "z"], ["ax", "ay", "az"]),
        (["a", "b"], ["x", "y"], ["ax", "by"]),
        ("a", [{"text": "x"}, {"content": [{"type": "text", "text": "y"}]}], ["ax", "ay"]),
    ],
)
@pytest.mark.parametrize("pooling", [RERANKS, EMBEDS, LATE])
def test_one_meets_one_or_all_and_many_meet_one_by_one(
    tokenizer: Tokenizer, pooling: Pooling, queries: Any, documents: Any, pairs: list[str]
) -> None:
    found = scoring(tokenizer, pooling, queries, documents)
    assert [tokenizer.decode(found.tokens(i)) for i in range(len(found.pairs))] == pairs
    apart = len(queries) + len(pairs)
    assert len(found.requests) == (len(pairs) if pooling is RERANKS else apart)
    assert {request.pooling.task for request in found.requests} == {score_task(pooling)}  # type: ignore[union-attr]


@pytest.mark.parametrize(("queries", "documents"), [(["a", "b"], ["x"]), (["a", "b"], ["x", "y", "z"])])
def test_numbers_that_do_not_fit_are_refused(tokenizer: Tokenizer, queries: Any, documents: Any) -> None:
    with pytest.raises(RequestError, match=f"2 texts can't be scored against {len(documents)}; give 1 and any number"):
        scoring(tokenizer, RERANKS, queries, documents)


@pytest.mark.parametrize(("pooling", "expected"), [(RERANKS, "classify"), (EMBEDS, "embed"), (LATE, "token_embed")])
def test_a_model_scores_by_what_it_can(pooling: Pooling, expected: str) -> None:
    assert score_task(pooling) == expected


@pytest.mark.parametrize("pooling", [CLASSIFIES, REWARDS])
def test_a_model_with_more_classes_cannot_score(pooling: Pooling) -> None:
    with pytest.raises(RequestError, match="a score needs one class, or embeddings"):
        score_task(pooling)


def test_scores_are_probabilities_cosines_or_maxsim(tokenizer: Tokenizer) -> None:
    for pooling in (RERANKS, EMBEDS, LATE):
        found = scoring(tokenizer, pooling, "the tide", ["came in", "the tide"])
        outputs = [output_of(request, pooling) for request in found.requests]
        scores = found.scores(outputs)
        assert all(isinstance(score, float) for score in scores)
        if pooling is RERANKS:
            assert scores == [float(output.outputs.data[0]) for output in outputs]
        elif pooling is EMBEDS:
            query, document, _ = (output.outputs.data.astype(float) for output in outputs)
            assert scores[0] == pytest.approx(query @ document) and scores[1] == pytest.approx(1)
        else:
            query, document = (vectors(r.token_ids).astype(float) for r in found.requests[:2])
            best = [max(float(np.dot(q, d)) for d in document) for q in query]
            assert scores[0] == pytest.approx(sum(best)) and scores[1] == pytest.approx(len(query))


def test_a_cosine_does_not_depend_on_lengths_nor_on_other_pairs(tokenizer: Tokenizer) -> None:
    found = scoring(tokenizer, EMBEDS, "the tide", ["came in", "twice"], params=PoolingParams(normalize=False))
    outputs = [output_of(request, EMBEDS) for request in found.requests]
    before = found.scores(outputs)
    outputs[0].outputs.data = outputs[0].outputs.data * np.float32(8)
    assert found.scores(outputs) == pytest.approx(before)
    alone = scoring(tokenizer, EMBEDS, "the tide", "twice", params=PoolingParams(normalize=False))
    assert alone.scores([output_of(request, EMBEDS) for request in alone.requests]) == [before[1]]


@pytest.mark.parametrize(
    ("similarity", "compare"),
    [
        ("dot", lambda a, b: a @ b),
        ("euclidean", lambda a, b: -(((a - b) ** 2).sum() ** 0.5)),
        ("manhattan", lambda a, b: -abs(a - b).sum()),
    ],
)
def test_embeddings_are_compared_as_the_model_says(tokenizer: Tokenizer, similarity: Any, compare: Any) -> None:
    pooling = dataclasses.replace(EMBEDS, texts=PooledTexts(similarity=similarity))
    found = scoring(tokenizer, pooling, "the tide", "came in", params=PoolingParams(normalize=False))
    outputs = [output_of(request, pooling) for request in found.requests]
    query, document = (output.outputs.data.astype(float) for output in outputs)
    assert found.scores(outputs) == pytest.approx([compare(query, document)])


def test_queries_and_documents_get_the_texts_that_the_model_wants_before_them(tokenizer: Tokenizer) -> None:
    pooling = Pooling(("embed",), "LAST", texts=PooledTexts((("query", "query: "), ("document", "passage: "))))
    assert texts(tokenizer, scoring(tokenizer, pooling, "a", "x")) == ["query: a", "passage: x"]


def test_a_pair_keeps_what_is_said_of_how_to_tokenize_it(tokenizer_folders: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(tokenizer_folders["sentencepiece"])
    scorer = Scorer(Preparer(tokenizer, Limits(600, 64)), RERANKS, ChatRenderer("tiny", {}, {}))
    query = Prompt("the tide", add_special_tokens=False, cache_salt="s", truncation_side="left")
    document = Prompt("came in and went out", add_special_tokens=False)
    whole = scorer.prepare([query], [document], PoolingParams()).requests[0]
    assert tokenizer.bos_token_id not in whole.token_ids and whole.cache_salt == "s"
    cut = scorer.prepare([query], [document], PoolingParams(truncate_prompt_tokens=2)).requests[0]
    assert cut.token_ids[-1] == whole.token_ids[-1] and len(cut.token_ids) == 2
    written = scorer.prepare([query], [document], PoolingParams(), template="{{ query }}").requests[0]
    assert written.cache_salt == "s"


@pytest.mark.parametrize("source", ["argument", "user", "model"])
def test_a_template_writes_both_texts(tokenizer: Tokenizer, source: str) -> None:
    own = "{% if messages[0].role == 'query' and messages[1]['role'] == 'document' %}" + TEMPLATE + "{% endif %}"
    renderer = ChatRenderer(
        "tiny", {"default": own} if source == "model" else {}, {}, TEMPLATE if source == "user" else None
    )
    template = TEMPLATE if source == "argument" else None
    found = scoring(tokenizer, RERANKS, "a", ["x", "y"], renderer, template=template)
    assert texts(tokenizer, found) == ["Q:a D:x!", "Q:a D:y!"]


def test_a_template_may_use_the_texts_by_name_and_more_variables(tokenizer: Tokenizer) -> None:
    template = "{{ instruction }}: {{ query }} {{ document }}"
    found = scoring(tokenizer, RERANKS, "a", "x", template=template, variables={"instruction": "judge"})
    assert texts(tokenizer, found) == ["judge: a x"]


def test_the_template_of_chats_is_none_for_pairs(tokenizer: Tokenizer) -> None:
    renderer = ChatRenderer("tiny", {"default": "{% for m in messages %}<{{ m.role }}>{% endfor %}"}, {})
    assert texts(tokenizer, scoring(tokenizer, RERANKS, "a", "x", renderer)) == ["ax"]


@pytest.mark.parametrize(
    ("pooling", "documents", "options", "message"),
    [
        (EMBEDS, "x", {"template": TEMPLATE}, "a template is for models that read both texts in one prompt"),
        (RERANKS, [5, 6], {}, "give texts, not token ids"),
        (RERANKS, "x", {"template": TEMPLATE, "params": PoolingParams(9)}, "would cut the end of what the template"),
        (RERANKS, [], {}, "documents is an empty list"),
        (RERANKS, {"content": [{"type": "image_url"}]}, {}, "documents: the model takes text only"),
    ],
)
def test_pairs_that_cannot_be_written_are_refused(
    tokenizer: Tokenizer, pooling: Pooling, documents: Any, options: Any, message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        scoring(tokenizer, pooling, "a", documents, **options)


def test_texts_that_are_embedded_may_be_token_ids(tokenizer: Tokenizer) -> None:
    found = scoring(tokenizer, EMBEDS, [5, 6], ["x"])
    assert found.requests[0].token_ids == [5, 6]


@pytest.mark.parametrize("template", [None, "{{ query }}{{ document }}"])
def test_a_pair_keeps_what_its_texts_say_of_the_cache(tokenizer: Tokenizer, template: str | None) -> None:
    """Requests with different salts must not share blocks, however the pair is written."""
    salts = []
    for query, document in [
        ("a", "x"),
        ("a", {"prompt": "x", "cache_salt": "s"}),
        ({"prompt": "a", "cache_salt": "s"}, "x"),
    ]:
        (request,) = scoring(tokenizer, RERANKS, query, document, template=template).requests
        salts.append(request.cache_salt)
    assert salts[0] is None and None not in salts[1:]
    both = [{"prompt": text, "cache_salt": salt} for text, salt in zip("ax", "st", strict=True)]
    (request,) = scoring(tokenizer, RERANKS, *both, template=template).requests
    assert request.cache_salt not in salts
