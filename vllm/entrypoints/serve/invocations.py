"""POST /invocations: the one door of SageMaker, behind which the body says what is asked for."""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable

from vllm.entrypoints.serve.chat import chat
from vllm.entrypoints.serve.completions import completions
from vllm.entrypoints.serve.context import Call
from vllm.entrypoints.serve.http import BodyDecoder
from vllm.entrypoints.serve.pooling.classify import classify
from vllm.entrypoints.serve.pooling.embeddings import embeddings
from vllm.entrypoints.serve.pooling.pooling import pooling
from vllm.entrypoints.serve.pooling.protocol import (
    ClassesList,
    ClassifyRequest,
    EmbeddingRequest,
    Embeddings,
    PooledList,
    PoolingRequest,
    Ranking,
    RerankRequest,
    ScoreRequest,
    Scores,
    refusal,
)
from vllm.entrypoints.serve.pooling.scoring import rerank, score
from vllm.entrypoints.serve.protocol import ChatCompletion, ChatRequest, Completion, CompletionRequest
from vllm.entrypoints.serve.route import Answer, Route

_PROMPTS: dict[str, tuple[BodyDecoder, Callable[[Call], Awaitable[Answer]]]] = {
    "embed": (BodyDecoder(EmbeddingRequest, refusal), embeddings),
    "classify": (BodyDecoder(ClassifyRequest, refusal), classify),
    "": (BodyDecoder(PoolingRequest, refusal), pooling),
}
"""What a model that pools is for → what it makes of prompts or a conversation."""


async def invocations(call: Call) -> Answer:
    """Answer as the endpoint does that a body fits and the model is for."""
    model, body = call.model, call.body
    if isinstance(body, CompletionRequest):
        model.check_purpose("generate", "prompt")
        return await completions(call)
    pools = call.engine.model_config.pooling
    if isinstance(body, ChatRequest) and pools is None:
        return await chat(call)
    model.check_purpose("pool", "this body")
    if isinstance(body, ScoreRequest):
        return await score(call)
    if isinstance(body, RerankRequest):
        return await rerank(call)
    assert pools is not None
    decode, answer = _PROMPTS.get(pools.tasks[0], _PROMPTS[""])
    again = copy.copy(call)
    again.body = decode(call.raw)
    return await answer(again)


_SCORED = dict.fromkeys(("text_1", "queries", "data_1"), ScoreRequest)
ROUTES = [
    Route(
        "POST",
        "/invocations",
        invocations,
        "The same as /v1/chat/completions for a body with messages, as /v1/completions for one with a prompt; with a model "
        "that pools, as /v1/embeddings, /classify or /pooling for messages or input, as /rerank for a query, and as /score "
        "for two sides.",
        body={
            "messages": ChatRequest,
            "prompt": CompletionRequest,
            "input": PoolingRequest,
            "query": RerankRequest,
            **_SCORED,
        },
        reply=(ChatCompletion, Completion, Embeddings, ClassesList, PooledList, Ranking, Scores),
        computes=True,
    )
]
