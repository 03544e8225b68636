"""Products for GPUs, against plain torch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.triton import DEVICE
from vllm.ops.matrix import DenseMatrix, MatrixShape
from vllm.ops.triton.matrix import GpuMatrix

pytestmark = pytest.mark.usefixtures("all_there")


@given(
    tokens=st.sampled_from([1, 1, 1, 3]),
    size=st.tuples(st.integers(1, 12), st.integers(1, 200) | st.sampled_from([2048, 2049, 4096])),
    bias=st.booleans(),
    kind=st.sampled_from([None, "silu", "gated gelu", "gated relu2"]),
    residual=st.booleans(),
    spends=st.booleans(),
    dtypes=st.sampled_from([(torch.float32, None), (torch.float16, None), (torch.float16, torch.float32)]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_products(
    *,
    tokens: int,
    size: tuple[int, int],
    bias: bool,
    kind: str | None,
    residual: bool,
    spends: bool,
    dtypes: tuple[torch.dtype, torch.dtype | None],
    seed: int,
) -> None:
    torch.manual_seed(seed)
    (rows, width), (dtype, wanted) = size, dtypes
    gated = kind is not None and kind.startswith("gated")
    shape = MatrixShape(2 * rows if gated else rows, width, dtype, DEVICE, bias, gated)
    weight, biases = torch.randn(shape.rows, width).to(dtype) / width**0.5, torch.randn(shape.rows).to(dtype)
    x, beside = torch.randn(tokens, width).to(dtype), torch.randn(tokens, rows).to(dtype)
    results = []
    for matrix in (GpuMatrix(shape), DenseMatrix(shape)):
        matrix.spends_residual = spends
        matrix.place(0, shape.rows).put(weight)
        if bias:
            matrix.bias_place(0, shape.rows).put(biases)
        results.append(
            matrix.multiply(
                x,
                activation=kind.removeprefix("gated ") if kind else None,
                residual=beside.clone() if residual else None,
                dtype=wanted,
            )
        )
    tolerance = 2e-5 if dtype == torch.float32 else 6e-3
    torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance)
