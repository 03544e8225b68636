"""A matrix whose output rows have names: `qkv` is one product with windows for q, k and v."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from vllm import ops
from vllm.layers.placement import Placement
from vllm.ops.parallel import Group, NextNorm
from vllm.weights import Window


@dataclass(frozen=True, slots=True)
class Part:
    """A run of output rows, stored in the checkpoint as `name`.weight and `name`.bias."""

    name: str
    rows: int
    cut: Callable[[Tensor], Tensor] | None = None
    """Takes this part's rows out of the checkpoint's tensor, [N, D] or [N]; without it they are all of it."""
    bias: str | None = None
    """The whole name of the bias, where it has one of its own; "": it stays 0."""


Shard = Literal["rows", "width", "gathered"]
"""How processes share a matrix: by rows; by width, adding up their results; by rows, laying their results side by side."""


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
        shard: Shard | None = None,
    ) -> None:
        """`transposed`: the checkpoint stores the matrix as [D, N].  `gated`: the first half of the rows is the gate of
        the second half.  `width` and the parts' rows are those of the whole matrix, whoever has them."""
        super().__init__()
        group = placement.group
        if group.size > 1 and shard is not None:
            parts = [_share(part, group, shard) for part in parts]
            width = group.share(width, "inner elements") if shard == "width" else width
        self.group = group
        self.shard = shard
        self.parts = tuple(parts)
        self.reader: NextNorm | None = None
        """What reads the result next, where processes add it up"""
        self.transposed = transposed
        self.activation = activation
        self.matrix = placement.matrix(sum(part.rows for part in parts), width, bias=bias, gated=gated)

    def forward(self, x: Tensor, residual: Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """`residual` is added at the end; `dtype` is the result's, by default that of x."""
        if self.shard == "width" and not self.group.is_first:
            residual = None  # it is added once
        y = self.matrix.multiply(x, activation=self.activation, residual=residual, dtype=dtype)
        if self.shard == "width":
            return self.group.add_up(y, self.reader)
        return self.group.side_by_side(y) if self.shard == "gathered" else y

    def greatest(self, x: Tensor, change: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Find each row's greatest result after a change that keeps their order, and which it is.  [T, D] -> [T], [T] int32

        Each process looks at its own results, so that these need not be gathered.
        """
        y = change(self.matrix.multiply(x, dtype=torch.float32))
        peaks, ids = ops.greatest(y)
        return self.group.greatest(peaks, ids + self.group.rank * y.shape[1])

    @property
    def is_gathered(self) -> bool:
        """Whether several processes have the rows of the results."""
        return self.shard == "gathered" and self.group.size > 1

    def windows(self) -> Iterator[Window]:
        first = 0
        for part in self.parts:
            cut = partial(_cut_transposed, part.cut) if self.transposed else part.cut
            yield Window(f"{part.name}.weight", self.matrix.place(first, part.rows), cut)
            if self.matrix.shape.bias and part.bias is None:
                yield Window(f"{part.name}.bias", self.matrix.bias_place(first, part.rows), part.cut)
            elif self.matrix.shape.bias and part.bias:
                yield Window(part.bias, self.matrix.bias_place(first, part.rows), torch.flatten, optional=True)
            first += part.rows


class Clipped(nn.Module):
    """A product whose results are bounded.  [T, D] -> [T, N]"""

    def __init__(self, product: nn.Module, limit: float) -> None:
        super().__init__()
        self.product = product
        self.limit = limit

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.product(x)
        return y.clamp(-self.limit, self.limit)


def _cut_transposed(cut: Callable[[Tensor], Tensor] | None, stored: Tensor) -> Tensor:
    return stored.T if cut is None else cut(stored.T)


def scaled(cut: Callable[[Tensor], Tensor] | None, by: tuple[float, float]) -> Callable[[Tensor], Tensor]:
    """Return a cut that also multiplies: a matrix with the first number, a bias with the second."""
    return partial(_scale, cut, *by)


def _scale(cut: Callable[[Tensor], Tensor] | None, matrix: float, bias: float, stored: Tensor) -> Tensor:
    found = stored if cut is None else cut(stored)
    return found * (matrix if found.dim() > 1 else bias)


def cut_third(which: int, head_dim: int, stored: Tensor) -> Tensor:
    """Take q, k or v out of a tensor that holds q, k and v of the first head, then of the second …

    [H 3 E, D] -> [H E, D], or without D
    """
    return stored.unflatten(0, (-1, 3, head_dim))[:, which].flatten(0, 1)


def split(name: str, sizes: Sequence[int]) -> list[Part]:
    """Return parts for runs of rows of one stored tensor."""
    firsts = [sum(sizes[:index]) for index in range(len(sizes))]
    return [Part(name, size, partial(_cut_run, first, size)) for first, size in zip(firsts, sizes, strict=True)]


def _cut_run(first: int, rows: int, stored: Tensor) -> Tensor:
    return stored[first : first + rows]


def _share(part: Part, group: Group, shard: Shard) -> Part:
    """Return a process's share of a part."""
    if shard == "width":
        return replace(part, cut=partial(cut_width, part.cut, group))
    return replace(
        part, rows=group.share(part.rows, f"the rows of {part.name}"), cut=partial(cut_rows, part.cut, group)
    )


def cut_rows(cut: Callable[[Tensor], Tensor] | None, group: Group, stored: Tensor) -> Tensor:
    """Cut a matrix, or a bias, by its rows."""
    return group.cut(stored if cut is None else cut(stored), 0)


def cut_width(cut: Callable[[Tensor], Tensor] | None, group: Group, stored: Tensor) -> Tensor:
    """Cut a matrix by its width; a bias is the first process's alone, since results are added up."""
    whole = stored if cut is None else cut(stored)
    if whole.dim() > 1:
        return group.cut(whole, 1)
    return whole if group.is_first else torch.zeros_like(whole)
