"""Normalisation with weights."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from vllm import ops
from vllm.layers.placement import Placement
from vllm.weights import TensorPlace, Window


class RmsNorm(nn.Module):
    """x / rms(x) · (offset + weight) + residual.  [..., D] -> [..., D]"""

    def __init__(self, width: int, name: str, placement: Placement, eps: float, offset: float = 0.0) -> None:
        super().__init__()
        self.name = name
        self.eps = eps
        self.offset = offset
        self.weight = placement.parameter(width)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return ops.rms_norm(x, self.weight, self.eps, self.offset, residual)

    def windows(self) -> Iterator[Window]:
        yield Window(f"{self.name}.weight", TensorPlace(self.weight))


class LayerNorm(nn.Module):
    """(x - mean(x)) / deviation(x) · weight + bias; without the last two if not affine.  [..., D] -> [..., D]"""

    def __init__(
        self, width: int, name: str, placement: Placement, eps: float, *, affine: bool = True, bias: bool = True
    ) -> None:
        super().__init__()
        self.name = name
        self.eps = eps
        self.weight = placement.parameter(width) if affine else None
        self.bias = placement.parameter(width) if affine and bias else None

    def forward(self, x: Tensor) -> Tensor:
        return ops.layer_norm(x, self.weight, self.bias, self.eps)

    def windows(self) -> Iterator[Window]:
        if self.weight is not None:
            yield Window(f"{self.name}.weight", TensorPlace(self.weight))
        if self.bias is not None:
            yield Window(f"{self.name}.bias", TensorPlace(self.bias))
