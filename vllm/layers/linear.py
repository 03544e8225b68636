"""A matrix whose output rows have names: `qkv` is one product with windows for q, k and v."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from vllm import ops
from vllm.layers.placement import Placement
from vllm.weights import Window


@dataclass(frozen=True, slots=True)
class Part:
    """A run of output rows, stored in the checkpoint as `name`.weight and `name`.bias."""

    name: str
    rows: int
    cut: Callable[[Tensor], Tensor] | None = None
    """Takes this part's rows out of the checkpoint's tensor, [N, D] or [N]; without it they are all of it."""


class Linear(nn.Module):
    """x Wᵀ + b.  [T, D] -> [T, N]"""

    def __init__(
        self, width: int, parts: Sequence[Part], placement: Placement, bias: bool = False, transposed: bool = False
    ) -> None:
        """`transposed`: the checkpoint stores the matrix as [D, N]."""
        super().__init__()
        rows = sum(part.rows for part in parts)
        self.parts = tuple(parts)
        self.transposed = transposed
        self.weight = placement.parameter(rows, width)
        self.bias = placement.parameter(rows) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return ops.linear(x, self.weight, self.bias)

    def windows(self) -> Iterator[Window]:
        first = 0
        for part in self.parts:
            rows = slice(first, first + part.rows)
            cut = partial(_cut_transposed, part.cut) if self.transposed else part.cut
            yield Window(f"{part.name}.weight", self.weight[rows], cut)
            if self.bias is not None:
                yield Window(f"{part.name}.bias", self.bias[rows], part.cut)
            first += part.rows


def _cut_transposed(cut: Callable[[Tensor], Tensor] | None, stored: Tensor) -> Tensor:
    return stored.T if cut is None else cut(stored.T)
