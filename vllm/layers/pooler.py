"""From the hidden states of prompts to embeddings, or to probabilities of classes.

hidden states ── pick ──▶ one vector per prompt, or per token ── layers ──▶ ── activation, or length 1 ──▶ result
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from vllm.pooling_params import Pooling, PoolingParams


@dataclass(frozen=True, slots=True)
class PoolingRow:
    """What is known of one prompt."""

    hidden: Tensor
    """[n, D] the hidden states of all its tokens, or [1, D] of the last one where the others don't count"""
    token_ids: Tensor
    """[n] int64, on the host: the whole prompt"""
    params: PoolingParams


class Pooler(nn.Module):
    """Pools prompts; each by itself, whatever is beside it."""

    def __init__(self, pooling: Pooling, layers: Sequence[nn.Module], width: int) -> None:
        """`layers` are applied to what is picked, one after another; `width` is that of their result."""
        super().__init__()
        self.pooling = pooling
        self.layers = nn.ModuleList(layers)
        self.width = width

    def forward(self, rows: Sequence[PoolingRow]) -> list[Tensor]:
        """Return a vector [N], or one per token [n, N], for each prompt; float32, on the host."""
        picked = [self._pick(row) for row in rows]
        counts = [len(states) for states in picked]
        x = torch.cat(picked)
        for layer in self.layers:
            x = layer(x.to(rows[0].hidden.dtype))
        parts = x.float().cpu().split(counts)
        return [self._finish(row, part) for row, part in zip(rows, parts, strict=True)]

    def _task(self, row: PoolingRow) -> str:
        return row.params.task or self.pooling.tasks[0]

    def _pick(self, row: PoolingRow) -> Tensor:
        """Return the states that count: [1, D], or [n, D] where every token has a result."""
        if not self._task(row).startswith("token_"):
            types = (self.pooling.pooling_type, *self.pooling.concatenated)
            return torch.cat([_PICKS[kind](row.hidden) for kind in types])[None]
        tag = row.params.step_tag_id if row.params.step_tag_id is not None else self.pooling.step_tag_id
        return row.hidden if tag is None else row.hidden[row.token_ids == tag]

    def _finish(self, row: PoolingRow, x: Tensor) -> Tensor:
        """Apply what comes last: a cut and the length of 1, or the activation."""
        task = self._task(row)
        x = self._embedding(row.params, x) if task.endswith("embed") else self._classes(row.params, x)
        return x if task.startswith("token_") else x[0]

    def _embedding(self, params: PoolingParams, x: Tensor) -> Tensor:
        wanted = params.dimensions or self.pooling.dimensions
        x = x if wanted is None else x[:, :wanted]
        normalize = self.pooling.normalize if params.activates is None else params.activates
        return x / x.square().sum(1, keepdim=True).sqrt().clamp_min(1e-12) if normalize else x

    def _classes(self, params: PoolingParams, x: Tensor) -> Tensor:
        if params.returned_token_ids is not None:
            x = x[:, params.returned_token_ids]
        if params.activates is False or (params.activates is None and self.pooling.activation == "none"):
            return x
        return torch.softmax(x, 1) if x.shape[1] > 1 and self.pooling.activation != "sigmoid" else torch.sigmoid(x)


def _weighted_mean(hidden: Tensor) -> Tensor:
    weights = torch.arange(1, len(hidden) + 1, dtype=torch.float32, device=hidden.device)
    return (hidden.float() * weights[:, None]).sum(0) / weights.sum()


_PICKS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "CLS": lambda hidden: hidden[0].float(),
        "LAST": lambda hidden: hidden[-1].float(),
        "MEAN": lambda hidden: hidden.float().sum(0) / len(hidden),
        "MEAN_SQRT_LEN": lambda hidden: hidden.float().sum(0) / len(hidden) ** 0.5,
        "WEIGHTED_MEAN": _weighted_mean,
        "MAX": lambda hidden: hidden.float().amax(0),
    }
)
"""Pooling type → the vector of a prompt's states.  [n, D] -> [D] float32"""
