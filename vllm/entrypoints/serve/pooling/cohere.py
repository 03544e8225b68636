"""POST /v2/embed: embeddings as Cohere has them, in several types at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vllm.entrypoints.serve.context import Call
from vllm.entrypoints.serve.http import Reply, encode
from vllm.entrypoints.serve.pooling.numbers import BY_TYPE
from vllm.entrypoints.serve.pooling.protocol import (
    ApiVersion,
    EmbeddingsByType,
    EmbedMeta,
    EmbedRequest,
    InputTokens,
    refusal,
)
from vllm.entrypoints.serve.pooling.running import check_count, pool, pooling_of, usage_of, write
from vllm.entrypoints.serve.route import Answer, Route
from vllm.errors import RequestError
from vllm.inputs.pooling import with_text_before
from vllm.inputs.prompts import Prompt
from vllm.pooling_params import PooledTexts, PoolingParams

_PROMPTS = {
    "search_query": ("search_query", "query"),
    "search_document": ("search_document", "document", "passage"),
    "classification": ("classification",),
    "clustering": ("clustering",),
}
"""What a text is for → names of the prompt that a model may have for it."""


async def embed(call: Call) -> Answer:
    """Embed each text."""
    body: EmbedRequest = call.body
    name = call.id()
    if not body.texts:
        raise RequestError("texts is an empty list; give at least one text", "texts")
    check_count(call, len(body.texts), "texts")
    cut = body.truncate or "END"
    params = PoolingParams(truncate_prompt_tokens=None if cut == "NONE" else -1, dimensions=body.output_dimension)
    side = {"START": "left", "END": "right"}.get(cut)
    texts = pooling_of(call).texts
    prompts = [Prompt(text, truncation_side=side) for text in body.texts]  # type: ignore[arg-type]
    prompts = with_text_before(prompts, texts, *_names(body.input_type, texts))
    outputs = await pool(call, prompts, params, "embed", "texts")
    meta = EmbedMeta(ApiVersion("2"), InputTokens(usage_of(call, outputs).prompt_tokens))
    head = EmbeddingsByType(name, {}, body.texts, meta)
    arrays = [output.outputs.data for output in outputs]
    return await write(call, outputs, _json, arrays, body.embedding_types or ["float"], head)


def _names(input_type: str | None, texts: PooledTexts) -> Sequence[str]:
    """Return the names of prompts for a kind of text.  Raises RequestError for a kind that there is not."""
    if input_type is None:
        return ()
    own = [name for name, _ in texts.prompts]
    if input_type not in _PROMPTS and input_type not in own:
        raise RequestError(f"input_type={input_type!r} is none of {', '.join([*_PROMPTS, *own])}", "input_type")
    return _PROMPTS.get(input_type, (input_type,))


def _json(arrays: list[np.ndarray], types: Sequence[str], head: EmbeddingsByType) -> Reply:
    for name in types:
        head.embeddings[name] = [BY_TYPE[name](data) for data in arrays]  # type: ignore[misc]
    return Reply(encode(head))


ROUTES = [
    Route(
        "POST",
        "/v2/embed",
        embed,
        "Embed texts, as Cohere's API does.",
        body=EmbedRequest,
        reply=EmbeddingsByType,
        purpose="pool",
        computes=True,
        refused=refusal,
    )
]
