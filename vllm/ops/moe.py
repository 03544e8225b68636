"""Mixture of experts: choose experts for each token, and run each expert on the tokens that chose it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vllm.ops.activations import Clamp, activation, gated_activation
from vllm.ops.matrix import Matrix


@dataclass(frozen=True, slots=True)
class Routing:
    """How a token's experts are chosen and weighed."""

    top_k: int
    renormalize: bool
    """The chosen experts' weights sum to 1."""
    sigmoid: bool = False
    """Scores are sigmoids, each by itself; else the softmax over all experts."""
    groups: int = 1
    """Of experts, of which a token first chooses `top_groups`, by the sum of each group's best scores"""
    top_groups: int = 1
    group_best: int = 2
    scale: float = 1.0
    """The weights are multiplied with it."""
    jitter: float = 0.0
    """Above 0: see `_mix_sparsely`; the above doesn't matter then."""


def route(logits: Tensor, routing: Routing, correction: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Choose the `top_k` best experts of each token.  [T, X] -> weights [T, top_k] float32, ids [T, top_k]

    `correction` [X] float32 is added to the scores to choose by, and is no part of the weights.
    """
    logits = logits.float()
    if routing.jitter:
        return _mix_sparsely(logits, routing.top_k, routing.jitter)
    scores = activation(logits, "sigmoid") if routing.sigmoid else torch.softmax(logits, dim=-1)
    ranked = scores if correction is None else scores + correction
    if correction is None and routing.groups == 1:  # scores that are almost 1 can't be told apart
        ranked = logits
    if routing.groups > 1:
        ranked = _of_best_groups(ranked, routing)
    ids = ranked.topk(routing.top_k, dim=-1).indices
    weights = scores.gather(-1, ids)
    if routing.renormalize:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return (weights if routing.scale == 1.0 else weights * routing.scale), ids


def _mix_sparsely(logits: Tensor, top_k: int, jitter: float) -> tuple[Tensor, Tensor]:
    """Choose experts one after another, each weighed by the softmax over those left that are almost as good: whose logits fall
    behind the best one's by no more than 2 jitter, as a share of the larger size.  https://arxiv.org/abs/2409.12136
    """
    left, weights, ids = logits, [], []
    for _ in range(top_k):
        best, found = left.max(dim=-1, keepdim=True)
        behind = (best - logits) / logits.abs().maximum(best)
        close = left.masked_fill(behind > 2 * jitter, -torch.inf)
        weights.append(torch.softmax(close, dim=-1).gather(-1, found))
        ids.append(found)
        left = left.scatter(-1, found, -torch.inf)
    return torch.cat(weights, dim=-1), torch.cat(ids, dim=-1)


def _of_best_groups(scores: Tensor, routing: Routing) -> Tensor:
    """Leave scores to the experts of the best groups alone.  [T, X] -> [T, X]"""
    grouped = scores.unflatten(-1, (routing.groups, -1))
    best = grouped.topk(routing.group_best, dim=-1).values.sum(-1).topk(routing.top_groups, dim=-1).indices
    chosen = torch.zeros(grouped.shape[:-1], dtype=torch.bool, device=scores.device).scatter_(-1, best, True)
    return grouped.masked_fill(~chosen[..., None], -torch.inf).flatten(-2)


def moe(
    x: Tensor,
    weights: Tensor,
    ids: Tensor,
    gate_up: Sequence[Matrix],
    down: Sequence[Matrix],
    *,
    activation: str,
    clamp: Clamp | None = None,
    identities: bool = False,
) -> Tensor:
    """Add up what each token's experts make of it.  [T, D], [T, K], [T, K], X of [2 I, D] or [I, D], X of [D, I] -> [T, D]

    With `clamp` the matrices of gates are not gated: what comes out of them is bounded first.  A token's experts are added in the order of their ids, in float32, so that its sum doesn't depend on its neighbours.  With `identities` an id behind
    the last expert's gives the token itself.
    """

    def compute(expert: int, part: Tensor) -> Tensor:
        if identities and expert >= len(down):
            return part
        if clamp is None:
            hidden = gate_up[expert].multiply(part, activation=activation)
        else:
            hidden = gated_activation(gate_up[expert].multiply(part), activation, clamp)
        return down[expert].multiply(hidden)

    return _added_up(x, weights, ids, x.shape[1], compute)


def chosen_products(x: Tensor, weights: Tensor, ids: Tensor, matrices: Sequence[Matrix], *, activation: str) -> Tensor:
    """Add up what each token's matrices make of it, under an activation.  [T, D], [T, K], [T, K], X of [N, D] -> [T, N]

    As above, a token's results are added in the order of the ids, in float32.
    """

    def compute(number: int, part: Tensor) -> Tensor:
        return matrices[number].multiply(part, activation=activation)

    return _added_up(x, weights, ids, matrices[0].shape.rows, compute)


def _added_up(x: Tensor, weights: Tensor, ids: Tensor, width: int, compute: Callable[[int, Tensor], Tensor]) -> Tensor:
    """Add up what `compute` makes of the tokens that chose an id, id by id.  -> [T, width]"""
    total = torch.zeros(len(x), width, dtype=torch.float32, device=x.device)
    for number in ids.unique().tolist():
        tokens, choice = (ids == number).nonzero(as_tuple=True)
        total[tokens] += compute(number, x[tokens]).float() * weights[tokens, choice].unsqueeze(-1)
    return total.to(x.dtype)
