"""Attention of whole prompts as a textbook has it: the scores of every pair of tokens at once, in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vllm.ops.attention import AttentionOptions, Layout


class Plan:
    """Remembers where the rows are."""

    form = None
    layout: Layout

    def place(self, layout: Layout) -> None:
        self.layout = layout


class DenseAttention:
    """Each row by itself, without a cache."""

    recordable = False

    def refuses(self, *_: Any, **__: Any) -> None:
        return None

    def allocate(self, *_: Any, **__: Any) -> None:
        return None

    def plan(self, *_: int) -> Plan:
        return Plan()

    def run(self, q: Tensor, k: Tensor, v: Tensor, cache: None, plan: Plan, options: AttentionOptions) -> Tensor:
        layout = plan.layout
        rows = [slice(f, f + n) for f, n in zip(layout.first.tolist(), layout.count.tolist(), strict=True)]
        return torch.cat([_attend(q[row], k[row], v[row], options) for row in rows]).to(v.dtype)


def _attend(q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions) -> Tensor:
    """[n, H, E], [n, G, E], [n, G, Ev] -> [n, H, Ev] float64"""
    group = q.shape[1] // k.shape[1]
    q, k, v = q.double(), k.double().repeat_interleave(group, 1), v.double().repeat_interleave(group, 1)
    scores = torch.einsum("ihe,jhe->hij", q, k) * options.scale
    if options.softcap:
        scores = options.softcap * torch.tanh(scores / options.softcap)
    distance = torch.arange(len(q)) - torch.arange(len(q))[:, None]  # of the key from the query
    if options.alibi_slopes is not None:
        scores -= options.alibi_slopes[:, None, None] * distance.abs()
    if options.bias is not None:
        farthest = options.bias.shape[1] // 2
        scores += options.bias[:, distance.clamp(-farthest, farthest) + farthest]
    hidden = torch.zeros_like(distance, dtype=torch.bool)
    if options.window is not None:
        hidden |= distance.abs() >= options.window
    if options.causal:
        hidden |= distance > 0
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    return torch.einsum("hij,jhe->ihe", weights, v)
