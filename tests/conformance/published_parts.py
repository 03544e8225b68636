"""What models that are written down here have in common."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | float = 0.0) -> Tensor:
    """Causal attention.  [n, H, E], [n, G, E], [n, G, E] -> [n, H E]"""
    k, v = (part.repeat_interleave(q.shape[1] // part.shape[1], 1) for part in (k, v))
    scores = torch.einsum("qhe,khe->hqk", q, k) * scale + bias
    future = torch.ones(len(q), len(q), dtype=torch.bool).triu(1)
    return torch.einsum("hqk,khe->qhe", scores.masked_fill(future, -math.inf).softmax(-1), v).flatten(1)


def rotate(x: Tensor, theta: float = 10000.0) -> Tensor:
    """By halves of each head.  [n, H, E]"""
    width = x.shape[-1]
    angles = torch.arange(len(x)).float()[:, None, None] * theta ** -(torch.arange(0, width, 2) / width)
    low, high = x.chunk(2, -1)
    return torch.cat((low * angles.cos() - high * angles.sin(), high * angles.cos() + low * angles.sin()), -1)
