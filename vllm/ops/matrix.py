"""Weight matrices: the places that a checkpoint fills, and the products with what is there.

A matrix is made with its size and filled part by part.  How it is kept is its own affair: as one tensor, where the
checkpoint's parts lie, or quantized.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from vllm.ops.activations import activation as activate
from vllm.ops.activations import gated_activation
from vllm.ops.linear import embedding, linear
from vllm.weights import Place, TensorPlace

Format = Literal["int8", "int4"]


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
    format: Format | None = None
    """Quantized to this."""


class Matrix(Protocol):
    """Rows of weights, and perhaps a bias."""

    shape: MatrixShape
    num_bytes: int

    def place(self, first: int, rows: int) -> Place:
        """Return where rows [first, first + rows) go.  [rows, width]"""

    def bias_place(self, first: int, rows: int) -> Place:
        """Return where their biases go.  [rows]"""

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

    def look_up(self, ids: Tensor) -> Tensor:
        """Return the rows of the ids.  [T] -> [T, D]"""


class DenseMatrix:
    """One tensor, and torch's product: the reference, and what runs on any device."""

    def __init__(self, shape: MatrixShape) -> None:
        self.shape = shape
        self.weight = torch.empty(shape.rows, shape.width, dtype=shape.dtype, device=shape.device)
        self.bias = torch.empty(shape.rows, dtype=shape.dtype, device=shape.device) if shape.bias else None
        self.num_bytes = self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)

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

    def look_up(self, ids: Tensor) -> Tensor:
        return embedding(ids, self.weight)
