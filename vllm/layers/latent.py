"""Latent attention: keys and values of all heads are made of one short vector.  https://arxiv.org/abs/2405.04434

    cache of a token     latent [L] | rotated part of the key [R]      for all heads

What makes keys of the latent is multiplied into the queries, and what makes values of it into the result.  So the latent itself is
key and value, of one head that all heads share, and no head's keys and values are ever there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from vllm.kv_cache.spec import Latent
from vllm.layers.linear import Linear, scaled
from vllm.layers.norm import RmsNorm
from vllm.layers.placement import Placement
from vllm.layers.step import Step
from vllm.ops.attention import AttentionOptions
from vllm.ops.per_head import per_head
from vllm.weights import TensorPlace, Window


class Expansion(nn.Module):
    """What makes each head's keys and values of the latent."""

    def __init__(self, sizes: tuple[int, int, int, int], name: str, placement: Placement, scale: float = 1.0) -> None:
        """`sizes`: heads, the key's part without positions, the value, the latent, which is multiplied with `scale`."""
        super().__init__()
        heads, key, value, latent = sizes
        self.name = name
        self.scale = scale
        self.key = placement.parameter(heads, key, latent)
        self.value = placement.parameter(heads, latent, value)

    def windows(self) -> Iterator[Window]:
        heads, key, _ = self.key.shape
        yield Window(f"{self.name}.weight", TensorPlace(self.key), self._scaled(partial(_key_part, heads, key)))
        yield Window(f"{self.name}.weight", TensorPlace(self.value), self._scaled(partial(_value_part, heads, key)))

    def _scaled(self, cut: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return cut if self.scale == 1.0 else scaled(cut, (self.scale, self.scale))


def _key_part(heads: int, key: int, stored: Tensor) -> Tensor:
    return stored.unflatten(0, (heads, -1))[:, :key]


def _value_part(heads: int, key: int, stored: Tensor) -> Tensor:
    return stored.unflatten(0, (heads, -1))[:, key:].transpose(1, 2)


class LatentAttention(nn.Module):
    """[T, D] -> [T, D]"""

    def __init__(
        self,
        index: int,
        sizes: tuple[int, int, int],
        query: nn.Module,
        latent: tuple[Linear, RmsNorm, Expansion],
        out: Linear,
        *,
        rotary: nn.Module,
        options: AttentionOptions,
    ) -> None:
        """`index` counts the layers that have a cache, in call order.  `sizes`: heads, and of a query the parts without positions
        and with.  `query` makes queries of x; `latent` are the product with x, the norm of the latent and what is made of it."""
        super().__init__()
        self.index = index
        self.heads, self.plain, self.rotated = sizes
        self.query = query
        self.compress, self.norm, self.expansion = latent
        self.out = out
        self.rotary = rotary
        self.options = options

    @property
    def cache_spec(self) -> Latent:
        """What memory this layer needs."""
        width = self.expansion.key.shape[2]
        return Latent(1, width + self.rotated, width)

    def forward(self, x: Tensor, step: Step, residual: Tensor | None = None) -> Tensor:
        queries = self.query(x).unflatten(1, (self.heads, -1))
        plain, rotated = queries.split((self.plain, self.rotated), dim=2)
        compressed = self.compress(x)
        latent, key = compressed.split((compressed.shape[1] - self.rotated, self.rotated), dim=1)
        latent = self.norm(latent.contiguous())[:, None]
        rotated, key = self.rotary(rotated.contiguous(), key[:, None].contiguous(), step.positions)
        q = torch.cat((per_head(plain, self.expansion.key), rotated), dim=2)
        cache, plan = step.caches[self.index], step.plans[step.group_of[self.index]]
        found = step.attention.run(q, torch.cat((latent, key), dim=2), latent, cache, plan, self.options)
        return self.out(per_head(found, self.expansion.value).flatten(1), residual)
