"""A model that pools without weights: what comes out of a prompt depends on its tokens, and on nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np

from vllm.messages import EngineRequest
from vllm.outputs import PoolingOutput, PoolingRequestOutput
from vllm.pooling_params import Pooling

WIDTH = 8
EMBEDS = Pooling(("embed", "token_embed"), "LAST", matryoshka=(2, 4))
CLASSIFIES = Pooling(("classify",), "LAST", normalize=False, num_labels=3)
RERANKS = Pooling(("classify",), "CLS", activation="sigmoid", num_labels=1)
REWARDS = Pooling(("token_classify",), "ALL", num_labels=2)
LATE = Pooling(("token_embed",), "ALL")


def vectors(token_ids: list[int], width: int = WIDTH) -> np.ndarray:
    """A vector of length 1 for each token.  [n] -> [n, width]"""
    grid = np.outer(np.asarray(token_ids) + 1, np.arange(1, width + 1))
    found = np.sin(grid * 0.7) + 0.1
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def pooled(request: EngineRequest, pooling: Pooling) -> np.ndarray:
    """What the model makes of a request."""
    params = request.pooling
    assert params is not None and params.task in pooling.tasks
    if params.task.endswith("classify"):
        each = np.abs(vectors(request.token_ids, pooling.num_labels))
        each = each / each.sum(1, keepdims=True) if pooling.num_labels > 1 else each * np.float32(0.5)
        if pooling.num_labels == 1:
            each[:, 0] = [((token * 37) % 101) / 101 for token in request.token_ids]
        return each if params.task.startswith("token_") else each.mean(0)
    each = vectors(request.token_ids, params.dimensions or WIDTH)
    if params.task == "token_embed":
        return each
    mean = each.mean(0)
    return mean / np.linalg.norm(mean) if params.activates is not False else mean


def output_of(request: EngineRequest, pooling: Pooling, error: str | None = None) -> PoolingRequestOutput[Any]:
    data = np.zeros(0, np.float32) if error else pooled(request, pooling)
    return PoolingRequestOutput(request.id, PoolingOutput(data), request.token_ids, num_cached_tokens=2, error=error)
