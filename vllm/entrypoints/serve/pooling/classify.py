"""POST /classify: the classes of texts or of a conversation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from vllm.entrypoints.serve.context import Call
from vllm.entrypoints.serve.http import Reply, encode
from vllm.entrypoints.serve.pooling.numbers import as_json
from vllm.entrypoints.serve.pooling.protocol import Classes, ClassesList, ClassifyRequest, refusal
from vllm.entrypoints.serve.pooling.running import now, params_of, pool, prompts_of, usage_of, write
from vllm.entrypoints.serve.route import Answer, Route


async def classify(call: Call) -> Answer:
    """Classify each input."""
    body: ClassifyRequest = call.body
    name = f"classify-{call.id(body.request_id)}"
    outputs = await pool(call, await prompts_of(call), params_of(body), "classify")
    head = ClassesList(name, "list", now(), call.model_name, [], usage_of(call, outputs))
    labels = getattr(call.engine.model_config.hf_config, "id2label", None) or {}
    return await write(call, outputs, _json, [output.outputs.data for output in outputs], labels, head)


def _json(arrays: list[np.ndarray], labels: Mapping[Any, str], head: ClassesList) -> Reply:
    for index, data in enumerate(arrays):
        best = int(data.argmax())
        label = labels.get(best, labels.get(str(best)))
        head.data.append(Classes(index, label, as_json(data), len(data)))  # type: ignore[arg-type]
    return Reply(encode(head))


ROUTES = [
    Route(
        "POST",
        "/classify",
        classify,
        "Say how likely each of the model's classes is.",
        body=ClassifyRequest,
        reply=ClassesList,
        purpose="pool",
        computes=True,
        refused=refusal,
    )
]
