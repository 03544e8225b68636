"""A matrix whose output rows have names: `qkv` is one product with windows for q, k and v."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

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
    """activation(x Wᵀ + b) + residual, or activation(gate) · up + residual.  [T, D] -> [T, N]"""

    def __init__(
        self,
        width: int,
        parts: Sequence[Part],
        placement: Placement,
        *,
        bias: bool = False,
        transposed: bool = False,
        activation: str | None = None,
        gated: bool = False,
    ) -> None:
        """`transposed`: the checkpoint stores the matrix as [D, N].  `gated`: the first half of the rows is the gate of
        the second half."""
        super().__init__()
        self.parts = tuple(parts)
        self.transposed = transposed
        self.activation = activation
        self.matrix = placement.matrix(sum(part.rows for part in parts), width, bias=bias, gated=gated)

    def forward(self, x: Tensor, residual: Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """`residual` is added at the end; `dtype` is the result's, by default that of x."""
        return self.matrix.multiply(x, activation=self.activation, residual=residual, dtype=dtype)

    def windows(self) -> Iterator[Window]:
        first = 0
        for part in self.parts:
            cut = partial(_cut_transposed, part.cut) if self.transposed else part.cut
            yield Window(f"{part.name}.weight", self.matrix.place(first, part.rows), cut)
            if self.matrix.shape.bias:
                yield Window(f"{part.name}.bias", self.matrix.bias_place(first, part.rows), part.cut)
            first += part.rows


def _cut_transposed(cut: Callable[[Tensor], Tensor] | None, stored: Tensor) -> Tensor:
    return stored.T if cut is None else cut(stored.T)
