"""Mixture of experts: choose experts for each token, and run each expert on the tokens that chose it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vllm.ops.matrix import Matrix


def route(logits: Tensor, top_k: int, renormalize: bool) -> tuple[Tensor, Tensor]:
    """Choose the `top_k` most likely experts of each token.  [T, X] -> weights [T, top_k] float32, ids [T, top_k]

    The weights are the softmax over all experts; renormalized, they sum to 1 over the chosen ones.
    """
    weights, ids = torch.softmax(logits.float(), dim=-1).topk(top_k, dim=-1)
    if renormalize:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return weights, ids


def moe(
    x: Tensor, weights: Tensor, ids: Tensor, gate_up: Sequence[Matrix], down: Sequence[Matrix], *, activation: str
) -> Tensor:
    """Add up what each token's experts make of it.  [T, D], [T, K], [T, K], X of [2 I, D], X of [D, I] -> [T, D]

    A token's experts are added in the order of their ids, in float32, so that its sum doesn't depend on its neighbours.
    """
    total = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for expert in ids.unique().tolist():
        tokens, choice = (ids == expert).nonzero(as_tuple=True)
        hidden = gate_up[expert].multiply(x[tokens], activation=activation)
        total[tokens] += down[expert].multiply(hidden).float() * weights[tokens, choice].unsqueeze(-1)
    return total.to(x.dtype)
