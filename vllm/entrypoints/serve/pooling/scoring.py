"""POST /score and /rerank, under all their paths: how well texts go together.

A template that writes both texts into one prompt is the server's (--chat-template) or one of the model's by name: a
request can't bring one.
"""

from __future__ import annotations

from typing import Any

from vllm.entrypoints.serve.context import LARGE, Call
from vllm.entrypoints.serve.generation import priority_of
from vllm.entrypoints.serve.http import json_reply
from vllm.entrypoints.serve.pooling.protocol import (
    InputTokens,
    PooledRequest,
    PooledUsage,
    Ranked,
    RankedDocument,
    Ranking,
    RankMeta,
    RerankRequest,
    Score,
    ScoreRequest,
    Scores,
    SearchUnits,
    refusal,
)
from vllm.entrypoints.serve.pooling.running import (
    check_count,
    dressed,
    named,
    now,
    params_of,
    pooling_of,
    run,
    usage_of,
)
from vllm.entrypoints.serve.rendering import size_of
from vllm.entrypoints.serve.route import Answer, Route
from vllm.errors import RequestError
from vllm.inputs.prompts import Prompt
from vllm.inputs.score import Scorer, has_media, texts_of

_SIDES = (("text_1", "text_2"), ("queries", "documents"), ("data_1", "data_2"))
_DOCUMENTS_OF_A_UNIT = 100  # what a search unit is at those who bill by it


async def score(call: Call) -> Answer:
    """Score one text with others, or as many with as many."""
    body: ScoreRequest = call.body
    name = f"score-{call.id(body.request_id)}"
    chosen = [pair for pair in _SIDES if any(getattr(body, side) is not None for side in pair)]
    if len(chosen) != 1 or any(getattr(body, side) is None for side in chosen[0]):
        names = ", ".join(" and ".join(pair) for pair in _SIDES)
        raise RequestError(f"give both sides under one pair of names: {names}", "text_1")
    first, second = [await _texts(call, getattr(body, side), side) for side in chosen[0]]
    scores, usage = await _scores(call, first, second, chosen[0][1])
    data = [Score(index, "score", value) for index, value in enumerate(scores)]
    return json_reply(Scores(name, "list", now(), call.model_name, data, usage))


async def rerank(call: Call) -> Answer:
    """Order documents by how well they answer a query."""
    body: RerankRequest = call.body
    name = f"rerank-{call.id(body.request_id)}"
    documents = await _texts(call, body.documents, "documents")
    scores, usage = await _scores(call, await _texts(call, body.query, "query"), documents, "documents")
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    results = [Ranked(index, scores[index]) for index in order[: body.top_n or None]]
    if body.return_documents is not False:
        for result in results:
            result.document = RankedDocument(documents[result.index].text or "")
    units = -(-len(documents) // _DOCUMENTS_OF_A_UNIT)
    meta = RankMeta(SearchUnits(units), InputTokens(usage.prompt_tokens))
    return json_reply(Ranking(name, call.model_name, usage, meta, results))


async def _texts(call: Call, given: Any, field: str) -> list[Prompt]:
    """Return what a field has to be scored; media are fetched in a thread."""
    body: PooledRequest = call.body
    if isinstance(given, list):
        check_count(call, len(given), field)
    with named(field):
        size = LARGE if has_media(given) else 0
        found = await call.server.work(size, texts_of, given, field, call.model.renderer.media)
    for prompt in found:
        if prompt.text is None:
            raise RequestError(f"{field}: give texts, not token ids", field)
    return dressed(found, body, special=body.add_special_tokens is not False)


async def _scores(
    call: Call, queries: list[Prompt], documents: list[Prompt], field: str
) -> tuple[list[float], PooledUsage]:
    """Return the score of each pair, and what it took."""
    body = call.body
    scorer = Scorer(call.engine.preparer, pooling_of(call), call.model.renderer)
    with named(field):
        scoring = await call.server.work(
            size_of(call, [*queries, *documents]) + sum(len(document.text or "") for document in documents) * 4,
            scorer.prepare,
            queries,
            documents,
            params_of(body),
            template=_template(call),
            variables=body.chat_template_kwargs,
            priority=priority_of(call),
        )
    outputs = await run(call, scoring.requests)
    size = sum(output.outputs.data.nbytes for output in outputs)
    scores = await call.server.work(size, scoring.scores, outputs)
    return scores, usage_of(call, outputs)


def _template(call: Call) -> str | None:
    """Return the model's template that a request names."""
    given, templates = call.body.chat_template, call.model.renderer.templates
    if given is None:
        return None
    if given not in templates:
        known = ", ".join(templates) or "none"
        raise RequestError(
            f"chat_template: a request can only name one of the model's templates ({known}); to have another, start the "
            "server with --chat-template",
            "chat_template",
        )
    return templates[given]


def _route(path: str, handler: Any, summary: str, body: Any, reply: Any) -> Route:
    return Route("POST", path, handler, summary, body=body, reply=reply, purpose="pool", computes=True, refused=refusal)


_SCORE = "Say how well texts go together, one with each of many, or as many with as many."
_RERANK = "Order documents by how well they answer a query."
ROUTES = [
    *(_route(path, score, _SCORE, ScoreRequest, Scores) for path in ("/score", "/v1/score")),
    *(_route(path, rerank, _RERANK, RerankRequest, Ranking) for path in ("/rerank", "/v1/rerank", "/v2/rerank")),
]
