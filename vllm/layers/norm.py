"""Normalisation with weights."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from vllm import ops
from vllm.layers.placement import Placement
from vllm.ops.parallel import NextNorm
from vllm.weights import TensorPlace, Window


class RmsNorm(nn.Module):
    """x / rms(x) · (offset + weight) + residual.  [..., D] -> [..., D]"""

    def __init__(
        self, width: int, name: str, placement: Placement, eps: float, offset: float = 0.0, shift: float = 0.0
    ) -> None:
        """`shift` is what the checkpoint's weights are less by."""
        super().__init__()
        self.name = name
        self.eps = eps
        self.offset = offset
        self.cut = partial(torch.add, shift) if shift else None
        self.weight = placement.parameter(width)
        self.next = NextNorm(self.weight, eps, offset)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if residual is None and (made := self.next.take(x)) is not None:
            return made
        return ops.rms_norm(x, self.weight, self.eps, self.offset, residual)

    def windows(self) -> Iterator[Window]:
        yield Window(f"{self.name}.weight", TensorPlace(self.weight), self.cut)


class NamedRmsNorm(RmsNorm):
    """The same, of which `name` is the whole name: plamo 2, grok.  [..., D] -> [..., D]"""

    def windows(self) -> Iterator[Window]:
        yield Window(self.name, TensorPlace(self.weight), self.cut)


class PlainRmsNorm(nn.Module):
    """x / rms(x), without weights.  [..., D] -> [..., D]"""

    ones: Tensor

    def __init__(self, width: int, placement: Placement, eps: float) -> None:
        super().__init__()
        self.eps = eps
        ones = torch.ones(width, dtype=placement.dtype, device=placement.device)
        self.register_buffer("ones", ones, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.ones, self.eps)


class GroupedRmsNorm(nn.Module):
    """x / rms(x) of each run of elements by itself, times weights: k2 horizon.  [..., D] -> [..., D]"""

    def __init__(self, width: int, groups: int, name: str, placement: Placement, eps: float) -> None:
        super().__init__()
        self.name = name
        self.groups = groups
        self.norm = PlainRmsNorm(width // groups, placement, eps)
        self.weight = placement.parameter(width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x.unflatten(-1, (self.groups, -1))).flatten(-2)
        return ops.multiply(y, self.weight.expand_as(y))

    def windows(self) -> Iterator[Window]:
        yield Window(f"{self.name}.weight", TensorPlace(self.weight))


class LayerNorm(nn.Module):
    """(x - mean(x)) / deviation(x) · weight + bias; without the last two if not affine.  [..., D] -> [..., D]"""

    def __init__(
        self,
        width: int,
        name: str,
        placement: Placement,
        eps: float,
        offset: float = 0.0,
        *,
        affine: bool = True,
        bias: bool = True,
    ) -> None:
        """`offset` is what the checkpoint's weights are less by."""
        super().__init__()
        self.name = name
        self.eps = eps
        self.offset = offset
        self.weight = placement.parameter(width) if affine else None
        self.bias = placement.parameter(width) if affine and bias else None

    def forward(self, x: Tensor) -> Tensor:
        return ops.layer_norm(x, self.weight, self.bias, self.eps)

    def windows(self) -> Iterator[Window]:
        if self.weight is not None:
            cut = partial(torch.add, self.offset) if self.offset else None
            yield Window(f"{self.name}.weight", TensorPlace(self.weight), cut)
        if self.bias is not None:
            yield Window(f"{self.name}.bias", TensorPlace(self.bias))


class OwnNorms(nn.Module):
    """A layer norm of each head, with weights of its own.  [T, H, E] -> [T, H, E]"""

    def __init__(self, heads: int, width: int, name: str, placement: Placement, eps: float, *, bias: bool) -> None:
        """`heads` are those of the model, of which this process has its share."""
        super().__init__()
        self.name = name
        self.eps = eps
        self.group = placement.group
        shape = (self.group.share(heads, "normalised heads"), width)
        self.weight = placement.parameter(*shape)
        self.bias = placement.parameter(*shape) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = ops.layer_norm(x, None, None, self.eps) * self.weight
        return y if self.bias is None else y + self.bias

    def windows(self) -> Iterator[Window]:
        cut = partial(self.group.cut, dim=0)
        yield Window(f"{self.name}.weight", TensorPlace(self.weight), cut)
        if self.bias is not None:
            yield Window(f"{self.name}.bias", TensorPlace(self.bias), cut)


class OwnRmsNorms(nn.Module):
    """x / rms(x) of each head, times weights of its own, stored under the whole name: plamo 2, k2 horizon.  [T, H, E] -> same"""

    def __init__(self, heads: int, width: int, name: str, placement: Placement, eps: float) -> None:
        super().__init__()
        self.name = name
        self.norm = PlainRmsNorm(width, placement, eps)
        self.weight = placement.parameter(heads, width)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.weight.flatten().expand(len(x), -1)
        return ops.multiply(self.norm(x).flatten(1), weights).unflatten(1, self.weight.shape)

    def windows(self) -> Iterator[Window]:
        yield Window(self.name, TensorPlace(self.weight), partial(torch.reshape, shape=self.weight.shape))


class HeadsNorm(nn.Module):
    """A norm over all heads of a token together.  [T, H, E] -> [T, H, E]"""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x.flatten(1))
        return y.unflatten(1, x.shape[1:])
