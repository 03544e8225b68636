"""Matrices from tensors."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from vllm import ops
from vllm.ops.matrix import Matrix, MatrixShape


def matrix_of(
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    gated: bool = False,
    format: str | None = None,
    kind: Callable[[MatrixShape], Matrix] = ops.matrix,
) -> Matrix:
    """Make a matrix that holds a tensor.  [N, D], [N]"""
    matrix = kind(MatrixShape(*weight.shape, weight.dtype, weight.device, bias is not None, gated, format))
    matrix.place(0, len(weight)).put(weight)
    if bias is not None:
        matrix.bias_place(0, len(bias)).put(bias)
    return matrix
