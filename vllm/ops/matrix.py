"""Weight matrices: the places that a checkpoint fills, and the products with what is there.

A matrix is made with its size and filled part by part.  How it is kept is its own affair: as one tensor, where the
checkpoint's parts lie, or quantized.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vllm.ops.activations import activation as activate
from vllm.ops.activations import gated_activation
from vllm.ops.linear import linear
from vllm.ops.rows import gather
from vllm.weights import Place, TensorPlace


@dataclass(frozen=True, slots=True)
class MatrixShape:
    """What a matrix is, before it has values."""

    rows: int
    width: int
    dtype: torch.dtype
    device: torch.device
    bias: bool = False
    gated: bool = False
    """The first half of the rows is the gate of the second half: products are activation(gate) · up."""
    format: str | None = None
    """What it is quantized to: int8, int4 or fp8."""


class Matrix(nn.Module):
    """Rows of weights, and perhaps a bias: what every kind of them can do."""

    def __init__(self, shape: MatrixShape, num_bytes: int) -> None:
        """`num_bytes`: the memory that it takes, or will take."""
        super().__init__()
        self.shape = shape
        self.num_bytes = num_bytes
        self.spends_residual = False
        """Products may write over what they are added to."""

    def place(self, first: int, rows: int) -> Place:
        """Return where rows [first, first + rows) go.  [rows, width]"""
        raise NotImplementedError

    def bias_place(self, first: int, rows: int) -> Place:
        """Return where their biases go.  [rows]"""
        raise NotImplementedError

    def multiply(
        self,
        x: Tensor,
        *,
        activation: str | None = None,
        residual: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Return activation(x Wᵀ + bias) + residual, or activation(gate) · up + residual.  [T, D] -> [T, N]

        `dtype` is the result's, by default that of x.
        """
        raise NotImplementedError

    def look_up(self, ids: Tensor, scale: float = 1.0, offset: int = 0) -> Tensor:
        """Return rows ids + offset, times `scale`.  [T] -> [T, D]"""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class RowsPlace:
    """Rows of a matrix that takes them over in a form of its own."""

    matrix: MatrixShape
    first: int
    rows: int
    take: Callable[[int, Tensor], None]
    """Takes the first row's number, and the rows."""

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.rows, self.matrix.width)

    @property
    def dtype(self) -> torch.dtype:
        return self.matrix.dtype

    def put(self, part: Tensor) -> None:
        self.take(self.first, part)


class DenseMatrix(Matrix):
    """One tensor, and torch's product: the reference, and what runs on any device."""

    def __init__(self, shape: MatrixShape) -> None:
        super().__init__(shape, shape.rows * (shape.width + shape.bias) * shape.dtype.itemsize)

        def undefined(*size: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(size, dtype=shape.dtype, device=shape.device), requires_grad=False)

        self.weight = undefined(shape.rows, shape.width)
        self.bias = undefined(shape.rows).zero_() if shape.bias else None

    def place(self, first: int, rows: int) -> Place:
        return TensorPlace(self.weight[first : first + rows])

    def bias_place(self, first: int, rows: int) -> Place:
        assert self.bias is not None
        return TensorPlace(self.bias[first : first + rows])

    def multiply(
        self,
        x: Tensor,
        *,
        activation: str | None = None,
        residual: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        y = linear(x, self.weight, self.bias)
        if self.shape.gated:
            assert activation is not None
            y = gated_activation(y, activation)
        elif activation is not None:
            y = activate(y, activation)
        if residual is not None:
            y = y + residual
        return y if dtype is None else y.to(dtype)

    def look_up(self, ids: Tensor, scale: float = 1.0, offset: int = 0) -> Tensor:
        return gather(self.weight, ids, scale, offset)
