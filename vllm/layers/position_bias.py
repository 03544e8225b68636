"""What attention adds to a score for the distance of query and key."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vllm.layers.placement import Placement
from vllm.weights import TensorPlace, Window


@dataclass(frozen=True, slots=True)
class Alibi:
    """Less with the distance, by a slope per head.  https://arxiv.org/abs/2108.12409"""

    scaled: bool = False
    """By as much as products of queries and keys are: falcon's"""
    root: bool = False
    """Less with the root of the distance: step 1's"""


@dataclass(frozen=True, slots=True)
class Buckets:
    """A learned bias per head and bucket of distances; keys behind the query have buckets of their own, if any is seen.

    Half of a side's buckets are for one distance each, the others widen up to `farthest` and hold what is beyond.
    https://arxiv.org/abs/1910.10683, appendix
    """

    count: int
    farthest: int = 128
    both_ways: bool = True
    """A query sees keys behind it too."""


class RelativeBias(nn.Module):
    """The bias of every distance that has one of its own.

    `table` is [H, 2 M + 1] in float32, M the farthest distance: entry M + d is for keys d behind the query.
    """

    def __init__(self, heads: int, buckets: Buckets, name: str, placement: Placement) -> None:
        super().__init__()
        self.buckets = buckets
        self.name = name
        self.dtype = placement.dtype
        table = torch.empty(heads, 2 * buckets.farthest + 1, device=placement.device)
        self.table = nn.Parameter(table, requires_grad=False)

    def windows(self) -> Iterator[Window]:
        yield Window(f"{self.name}.weight", TensorPlace(self.table, self.dtype), self._spread)

    def _spread(self, stored: Tensor) -> Tensor:
        """Give each distance the bias of its bucket.  [buckets, H] -> [H, 2 M + 1]"""
        distances = torch.arange(-self.buckets.farthest, self.buckets.farthest + 1)
        return stored[bucket_of(distances, self.buckets)].T


def bucket_of(distances: Tensor, buckets: Buckets) -> Tensor:
    """Return the bucket of each distance, key's position - query's position.  Same shape, int64

    Boundaries are where logarithms in float32 put them, as in training.
    """
    side = buckets.count // 2 if buckets.both_ways else buckets.count
    exact = side // 2
    far = distances.abs() if buckets.both_ways else (-distances).clamp_min(0)
    growth = torch.log(far.float() / exact) / math.log(buckets.farthest / exact) * (side - exact)
    widening = (exact + growth.clamp_min(0).long()).clamp_max(side - 1)
    return torch.where(far < exact, far, widening) + (side * (distances > 0) if buckets.both_ways else 0)


def root_bias(slopes: Tensor, longest: int) -> Tensor:
    """Return what scores get for the roots of distances, as `RelativeBias` has it.  [H] -> [H, 2 longest + 1]"""
    return -slopes[:, None] * torch.arange(-longest, longest + 1).abs().float().sqrt()


def alibi_slopes(heads: int) -> Tensor:
    """Return the slope of each head: a geometric series, or two of them if H is no power of 2.  -> [H] float32"""
    whole = 2 ** math.floor(math.log2(heads))
    first = [2 ** (-8 * (head + 1) / whole) for head in range(whole)]
    between = [2 ** (-4 * (head + 1) / whole) for head in range(0, 2 * (heads - whole), 2)]
    return torch.tensor(first + between)
