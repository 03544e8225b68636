"""Bodies made at random, half of sense and half of nonsense: each is answered, and no answer is a fault of ours."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.entrypoints.pooled import CLASSIFIES, EMBEDS, LATE, RERANKS, REWARDS
from tests.entrypoints.serve.battery import refusal
from tests.entrypoints.serve.fakes import Client, FakeEngine
from vllm.entrypoints.serve.anthropic.protocol import MessagesRequest
from vllm.entrypoints.serve.pooling.protocol import (
    ClassifyRequest,
    EmbeddingRequest,
    EmbedRequest,
    PoolingRequest,
    RerankRequest,
    ScoreRequest,
)
from vllm.entrypoints.serve.protocol import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from vllm.entrypoints.serve.responses.protocol import ResponsesRequest
from vllm.pooling_params import Pooling

NUMBERS = st.integers(-3, 3) | st.integers() | st.floats() | st.sampled_from([2**63, -(2**63), 2**70, 1e308, 0.5])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
TOKENS = st.lists(st.integers(-1, 300), max_size=6)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "tool", ""])},
    optional={
        "content": st.text(max_size=8) | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": st.text()}))
    },
)
TEXTS = st.text(max_size=8) | st.fixed_dictionaries({"text": st.text(max_size=8)})
SENSE: dict[str, st.SearchStrategy[Any]] = {
    "prompt": st.text(max_size=8) | TOKENS | st.lists(st.text(max_size=8) | TOKENS, max_size=3),
    "messages": st.lists(MESSAGE, min_size=1, max_size=3),
    "tokens": TOKENS,
    "max_output_tokens": st.integers(1, 5),
    "background": st.just(False),
    "model": st.just("acme/tiny"),
    "n": st.integers(1, 3),
    "best_of": st.integers(1, 3),
    "max_tokens": st.integers(0, 5),
    "max_completion_tokens": st.integers(1, 5),
    "top_logprobs": st.integers(0, 3),
    "prompt_logprobs": st.integers(0, 3),
    "stop": st.text(max_size=3) | st.lists(st.text(max_size=3), max_size=3),
    "stream_options": st.fixed_dictionaries({}, optional={"include_usage": st.booleans()}),
    "logit_bias": st.dictionaries(st.integers(0, 9).map(str), st.floats(-3, 3), max_size=3),
    "allowed_token_ids": TOKENS,
    "stop_token_ids": TOKENS,
    "request_id": st.text(max_size=8),
    "chat_template": st.sampled_from(["loud", "{{ messages }}"]),
    "input": st.text(max_size=8)
    | TOKENS
    | st.lists(st.text(max_size=8) | TOKENS, max_size=3)
    | st.lists(MESSAGE, max_size=3),
    "texts": st.lists(st.text(max_size=8), max_size=3),
    "query": TEXTS,
    "documents": st.lists(TEXTS, max_size=3),
    **dict.fromkeys(("text_1", "text_2"), TEXTS | st.lists(TEXTS, max_size=3)),
    "dimensions": st.sampled_from([2, 4, 5]),
    "truncate_prompt_tokens": st.integers(-1, 4),
    "encoding_format": st.sampled_from(["float", "base64"]),
    "embed_dtype": st.sampled_from(["float32", "float16", "bfloat16"]),
    "endianness": st.sampled_from(["native", "little", "big"]),
    "truncation_side": st.sampled_from(["left", "right"]),
    "task": st.sampled_from(["embed", "token_embed", "classify"]),
    "input_type": st.sampled_from(["search_query", "image"]),
    "embedding_types": st.lists(st.sampled_from(["float", "int8", "ubinary"]), max_size=3),
}
REFUSED = ["suffix", "guided_json", "response_format", "structured_outputs", "unknown"]


def bodies(kind: type[msgspec.Struct], required: str) -> st.SearchStrategy[dict[str, Any]]:
    def value(name: str) -> st.SearchStrategy[Any]:
        return SENSE.get(name, st.booleans() | st.floats(0, 1) | st.integers(0, 2)) | VALUES

    names = [field.encode_name for field in msgspec.structs.fields(kind)]
    needed = required.split()
    optional = {name: value(name) for name in [*names, *REFUSED] if name not in needed}
    few = st.lists(st.sampled_from(sorted(optional)), max_size=5, unique=True).flatmap(
        lambda chosen: st.fixed_dictionaries({name: optional[name] for name in chosen})
    )
    always = {name: value(name) for name in needed}
    if kind is MessagesRequest:
        always["max_tokens"] = st.integers(1, 5)
    return st.tuples(st.fixed_dictionaries(always), few).map(lambda pair: pair[0] | pair[1])


def encodable(value: Any) -> bytes:
    """JSON without NaN, which is none; infinities become numbers that are too large for a float."""
    return (
        json.dumps(value).replace("-Infinity", "-1e999").replace("Infinity", "1e999").replace("NaN", "1e999").encode()
    )


@pytest.mark.parametrize(
    ("path", "kind", "required", "pooling"),
    [
        ("/v1/completions", CompletionRequest, "prompt", None),
        ("/v1/chat/completions", ChatRequest, "messages", None),
        ("/tokenize", TokenizeRequest, "prompt", None),
        ("/detokenize", DetokenizeRequest, "tokens", None),
        ("/v1/responses", ResponsesRequest, "input", None),
        ("/v1/messages", MessagesRequest, "messages", None),
        ("/v1/embeddings", EmbeddingRequest, "input", EMBEDS),
        ("/v1/embeddings", EmbeddingRequest, "messages", EMBEDS),
        ("/pooling", PoolingRequest, "input", REWARDS),
        ("/classify", ClassifyRequest, "input", CLASSIFIES),
        ("/score", ScoreRequest, "text_1 text_2", LATE),
        ("/rerank", RerankRequest, "query documents", RERANKS),
        ("/v2/embed", EmbedRequest, "texts", EMBEDS),
        ("/invocations", EmbeddingRequest, "input", EMBEDS),
    ],
)
def test_no_body_is_answered_with_a_fault_of_ours(
    path: str, kind: type[msgspec.Struct], required: str, pooling: Pooling | None
) -> None:
    client = Client(FakeEngine(pooling=pooling))
    seen = set()

    @settings(max_examples=150)
    @given(bodies(kind, required))
    def check(body: dict[str, Any]) -> None:
        answer = client.post(path, encodable(body))
        seen.add(answer.status)
        if answer.status != 200:
            assert answer.status in (400, 404) and refusal(answer, path)["message"]
        elif body.get("stream") is True:
            assert b'"error":{' not in answer.body
        else:
            assert all(math.isfinite(number) for number in numbers(answer.json))

    check()
    assert seen >= {200, 400}, "the bodies are all of one kind"


def numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [number for inner in value.values() for number in numbers(inner)]
    if isinstance(value, list):
        return [number for inner in value for number in numbers(inner)]
    return [value] if isinstance(value, (int, float)) else []
