"""Differential attention: of each pair of heads, what the second one finds is taken from what the first one does.

https://arxiv.org/abs/2410.05258
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from vllm.kv_cache.spec import CacheSpec, Full
from vllm.layers.attention import Attention
from vllm.layers.recurrent import Exact
from vllm.layers.step import Step


class Share(nn.Module):
    """The share that is taken: exp(a · b) - exp(c · d) + `start`.  -> []"""

    def __init__(self, start: float, vectors: tuple[Exact, Exact, Exact, Exact]) -> None:
        super().__init__()
        self.start = start
        self.vectors = nn.ModuleList(vectors)

    def forward(self) -> Tensor:
        a, b, c, d = (cast("Exact", vector).value for vector in self.vectors)
        return torch.exp((a * b).sum()) - torch.exp((c * d).sum()) + self.start


class DifferentialAttention(Attention):
    """Attention by pairs of neighbouring heads, whose values lie side by side and are one.  [T, D] -> [T, D]"""

    def __init__(self, share: Share, pair_norm: nn.Module, *args: Any, **options: Any) -> None:
        """`pair_norm` is applied to each pair's result; the rest as for attention, with twice as many heads as there are pairs."""
        super().__init__(*args, **options)
        self.share = share
        self.pair_norm = pair_norm

    @property
    def cache_spec(self) -> CacheSpec:
        """What memory this layer needs: each key has the values of its pair."""
        return Full(self.num_kv_heads, self.head_dim, 2 * self.head_dim)

    def attend(self, heads: Tensor, step: Step) -> Tensor:
        q, k, v = heads.split((self.num_heads, self.num_kv_heads, self.num_kv_heads), dim=1)
        q, k = self.rotary(self.q_norm(q), self.k_norm(k), step.positions)
        pairs = self.num_kv_heads // 2
        q = q.unflatten(1, (pairs, -1, 2)).transpose(2, 3).flatten(1, 3)  # those that share a key stand together
        v = v.unflatten(1, (pairs, 2)).flatten(2).repeat_interleave(2, dim=1)  # [T, G, 2 E]
        found = step.attention.run(q, k, v, step.caches[self.index], self.plan(step), self.options)
        first, second = found.float().unflatten(1, (pairs, 2, -1)).unbind(2)
        rest = (first - self.share() * second).flatten(1, 2).to(heads.dtype)  # [T, H / 2, 2 E]
        y: Tensor = self.pair_norm(rest) * (1 - self.share.start)
        return y.flatten(1)
