"""POST /v1/embeddings: texts or a conversation to embeddings, as OpenAI has it."""

from __future__ import annotations

import numpy as np

from vllm.entrypoints.serve.context import Call
from vllm.entrypoints.serve.http import Reply, encode
from vllm.entrypoints.serve.pooling.numbers import binary, check_form, written
from vllm.entrypoints.serve.pooling.protocol import Embedding, EmbeddingRequest, Embeddings, refusal
from vllm.entrypoints.serve.pooling.running import now, params_of, pool, prompts_of, usage_of, with_names, write
from vllm.entrypoints.serve.route import Answer, Route


async def embeddings(call: Call) -> Answer:
    """Embed each input."""
    body: EmbeddingRequest = call.body
    check_form(body)
    name = f"embd-{call.id(body.request_id)}"
    prompts = with_names(await prompts_of(call), call)
    outputs = await pool(call, prompts, params_of(body), "embed")
    head = Embeddings(name, "list", now(), call.model_name, [], usage_of(call, outputs))
    arrays = [output.outputs.data for output in outputs]
    as_text = body.encoding_format in (None, "float", "base64")
    return await write(call, outputs, _json if as_text else binary, arrays, body, head)


def _json(arrays: list[np.ndarray], body: EmbeddingRequest, head: Embeddings) -> Reply:
    for index, data in enumerate(arrays):
        head.data.append(Embedding(index, "embedding", written(data, body)))
    return Reply(encode(head))


ROUTES = [
    Route(
        "POST",
        "/v1/embeddings",
        embeddings,
        "Embed texts or a conversation.",
        body=EmbeddingRequest,
        reply=Embeddings,
        purpose="pool",
        computes=True,
        refused=refusal,
    )
]
