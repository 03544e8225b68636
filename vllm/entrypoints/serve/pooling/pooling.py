"""POST /pooling: what the model pools, whatever that is."""

from __future__ import annotations

import numpy as np

from vllm.entrypoints.serve.context import Call
from vllm.entrypoints.serve.http import Reply, encode
from vllm.entrypoints.serve.pooling.numbers import binary, check_form, written
from vllm.entrypoints.serve.pooling.protocol import PooledData, PooledList, PoolingRequest, refusal
from vllm.entrypoints.serve.pooling.running import (
    now,
    params_of,
    pool,
    pooling_of,
    prompts_of,
    usage_of,
    with_names,
    write,
)
from vllm.entrypoints.serve.route import Answer, Route
from vllm.errors import RequestError


async def pooling(call: Call) -> Answer:
    """Pool each input."""
    body: PoolingRequest = call.body
    check_form(body)
    name = f"pool-{call.id(body.request_id)}"
    prompts = await prompts_of(call)
    if (body.task or pooling_of(call).tasks[0]) == "embed":
        prompts = with_names(prompts, call)
    elif body.prompt_name is not None:
        raise RequestError("prompt_name is for embeddings of whole inputs", "prompt_name")
    outputs = await pool(call, prompts, params_of(body), body.task)
    head = PooledList(name, "list", now(), call.model_name, [], usage_of(call, outputs))
    arrays = [output.outputs.data for output in outputs]
    as_text = body.encoding_format in (None, "float", "base64")
    return await write(call, outputs, _json if as_text else binary, arrays, body, head)


def _json(arrays: list[np.ndarray], body: PoolingRequest, head: PooledList) -> Reply:
    for index, data in enumerate(arrays):
        head.data.append(PooledData(index, "pooling", written(data, body)))
    return Reply(encode(head))


ROUTES = [
    Route(
        "POST",
        "/pooling",
        pooling,
        "Pool texts or a conversation: embeddings, classes or rewards, for the whole or for each token.",
        body=PoolingRequest,
        reply=PooledList,
        purpose="pool",
        computes=True,
        refused=refusal,
    )
]
