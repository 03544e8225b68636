"""POST /score and /rerank: pairs, orders, and the shapes that clients of Jina and Cohere know."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.entrypoints.pooled import CLASSIFIES, EMBEDS, LATE, RERANKS
from tests.entrypoints.serve.fakes import Client, FakeEngine, tokenizer
from vllm.pooling_params import Pooling

DOCUMENTS = ["Paris is the capital of France", "the tide", "Brasilia"]
QUERY = "What is the capital of France?"


def client(pooling: Pooling = RERANKS, template: str = "{{ messages[0].content }}", **settings: Any) -> Client:
    engine = FakeEngine(pooling=pooling)
    engine.template = template
    return Client(engine, **settings)


def ask(path: str, using: Client | None = None, **body: Any) -> Any:
    answer = (using or client()).post(path, body)
    assert answer.status == 200, answer.body
    return answer.json


def shown(using: Client) -> list[str]:
    return [tokenizer().decode(request.token_ids) for request in using.engine.seen]


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
@pytest.mark.parametrize("names", [("text_1", "text_2"), ("queries", "documents"), ("data_1", "data_2")])
def test_scores_have_the_shape_that_clients_know(path: str, names: tuple[str, str]) -> None:
    using = client()
    reply = ask(path, using, **{names[0]: QUERY, names[1]: DOCUMENTS})
    assert reply["object"] == "list" and reply["id"].startswith("score-") and reply["model"] == "acme/tiny"
    assert [(entry["index"], entry["object"]) for entry in reply["data"]] == [(i, "score") for i in range(3)]
    assert shown(using) == [QUERY + document for document in DOCUMENTS]
    count = sum(len(request.token_ids) for request in using.engine.seen)
    assert reply["usage"] == {"prompt_tokens": count, "total_tokens": count}


@pytest.mark.parametrize("pooling", [RERANKS, EMBEDS, LATE])
def test_many_are_scored_one_by_one(pooling: Pooling) -> None:
    both = ask("/score", client(pooling), text_1=["a", "b"], text_2=["x", "y"])["data"]
    alone = [ask("/score", client(pooling), text_1=q, text_2=d)["data"][0]["score"] for q, d in ("ax", "by")]
    assert [entry["score"] for entry in both] == alone and alone[0] != alone[1]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "give both sides under one pair of names: text_1 and text_2, queries and documents"),
        ({"text_1": "a"}, "give both sides"),
        ({"text_1": "a", "text_2": "b", "data_1": "c", "data_2": "d"}, "give both sides"),
        ({"text_1": "a", "text_2": []}, "text_2 is an empty list"),
        ({"text_1": ["a", "b"], "text_2": ["c", "d", "e"]}, "2 texts can't be scored against 3"),
        ({"text_1": "a", "text_2": ["b"] * 2049}, "2,049 texts are more than max_inputs=2048"),
        ({"text_1": "a", "text_2": {"image_url": "b"}}, "unknown field 'image_url'"),
        ({"text_1": "a", "text_2": {"prompt_token_ids": [5]}}, "text_2: give texts, not token ids"),
        ({"text_1": "a", "text_2": {"prompt": 5}}, "'prompt' must be a text"),
        ({"text_1": "a", "text_2": "b " * 600}, "tokens, but max_model_len=512 is the most; shorten it, set truncate"),
        ({"text_1": "a", "text_2": "b", "cache_salt": ""}, "cache_salt is empty"),
        ({"text_1": "a", "text_2": "b", "chat_template": "{{ query }}"}, "only name one of the model's templates"),
    ],
)
def test_what_cannot_be_scored_is_refused(body: Any, message: str) -> None:
    using = client()
    answer = using.post("/score", body)
    assert answer.status == 400 and message in answer.error["message"], answer.body
    assert not using.engine.seen


def test_a_model_of_several_classes_does_not_score() -> None:
    answer = client(CLASSIFIES).post("/score", {"text_1": "a", "text_2": "b"})
    assert answer.status == 400 and "3 classes, and a score needs one class" in answer.error["message"]


def test_long_pairs_are_cut_if_that_is_asked_for() -> None:
    using = client()
    ask("/score", using, text_1="a", text_2="b " * 600, truncate_prompt_tokens=-1)
    assert len(using.engine.seen[0].token_ids) == 512


def test_the_models_own_template_for_pairs_is_used_and_others_go_by_name() -> None:
    own = "{% if messages[0]['role'] == 'query' %}[{{ query }}|{{ document }}|{{ how }}]{% endif %}{# 'document' #}"
    using = client(template=own)
    ask("/score", using, text_1="a", text_2="b", chat_template_kwargs={"how": "well"})
    ask("/score", using, text_1="a", text_2="b", chat_template="loud")
    assert shown(using) == ["[a|b|well]", "a!"]


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_a_ranking_has_the_shape_that_clients_of_jina_and_cohere_know(path: str) -> None:
    using = client()
    reply = ask(path, using, model="acme/tiny", query=QUERY, documents=DOCUMENTS)
    scores = [entry["score"] for entry in ask("/score", text_1=QUERY, text_2=DOCUMENTS)["data"]]
    order = sorted(range(3), key=lambda index: -scores[index])
    assert reply["results"] == [
        {"index": index, "relevance_score": scores[index], "document": {"text": DOCUMENTS[index]}} for index in order
    ]
    count = sum(len(request.token_ids) for request in using.engine.seen)
    assert reply["id"].startswith("rerank-") and reply["model"] == "acme/tiny"
    assert reply["usage"] == {"prompt_tokens": count, "total_tokens": count}
    assert reply["meta"] == {"billed_units": {"search_units": 1}, "tokens": {"input_tokens": count}}


def test_a_ranking_may_be_short_and_without_documents() -> None:
    whole = ask("/rerank", query=QUERY, documents=DOCUMENTS)["results"]
    best = ask("/rerank", query={"text": QUERY}, documents=[{"text": d} for d in DOCUMENTS], top_n=2)["results"]
    assert best == whole[:2]
    bare = ask("/rerank", query=QUERY, documents=DOCUMENTS, return_documents=False, top_n=0)["results"]
    assert bare == [{name: entry[name] for name in ("index", "relevance_score")} for entry in whole]


def test_equal_documents_keep_their_order() -> None:
    results = ask("/rerank", query="a", documents=["x"] * 5)["results"]
    assert [entry["index"] for entry in results] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"query": "a"}, "documents"),
        ({"query": "a", "documents": []}, "documents"),
        ({"query": "a", "documents": ["b"], "top_n": -1}, "top_n"),
        ({"query": "a", "documents": ["b"], "max_tokens_per_doc": 5}, "max_tokens_per_doc"),
        ({"query": "a", "documents": ["b"], "rank_fields": ["title"]}, "rank_fields"),
        ({"query": ["a", "b"], "documents": ["b", "c"]}, "query"),
    ],
)
def test_a_ranking_without_sense_names_its_field(body: Any, param: str) -> None:
    answer = client().post("/rerank", body)
    assert answer.status == 400 and answer.error["param"].startswith(param), answer.body


def test_a_row_that_failed_fails_the_ranking() -> None:
    using = client()
    using.engine.fails_alone = "not a finite number"
    assert using.post("/rerank", {"query": "a", "documents": ["b", "c"]}).status == 500


def test_scores_that_are_no_numbers_never_leave() -> None:
    """Cosines of nothing are 0."""
    reply = ask("/score", client(EMBEDS), text_1="a", text_2="a", use_activation=False)
    assert json.dumps(reply, allow_nan=False) and reply["data"][0]["score"] == pytest.approx(1)


@pytest.mark.parametrize("pooling", [RERANKS, EMBEDS, LATE])
def test_a_salt_and_a_side_reach_every_request(pooling: Pooling) -> None:
    using = client(pooling)
    ask(
        "/rerank",
        using,
        query="a",
        documents=["b " * 600, "c"],
        cache_salt="s",
        truncate_prompt_tokens=9,
        truncation_side="left",
    )
    ask("/rerank", using, query="a", documents=["b " * 600, "c"], truncate_prompt_tokens=9)
    salted, bare = using.engine.seen[: len(using.engine.seen) // 2], using.engine.seen[len(using.engine.seen) // 2 :]
    assert all(request.cache_salt for request in salted) and not any(request.cache_salt for request in bare)
    assert [r.token_ids for r in salted] != [r.token_ids for r in bare]
