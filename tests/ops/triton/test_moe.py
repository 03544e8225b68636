"""A mixture of experts for GPUs, against plain torch.

On a GPU itself: TRITON_INTERPRET=0 pytest tests/ops/triton/test_moe.py
"""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.ops.triton import DEVICE
from vllm.ops.activations import Clamp
from vllm.ops.matrix import DenseMatrix, MatrixShape
from vllm.ops.moe import chosen_products as chosen_torch
from vllm.ops.moe import moe as moe_torch
from vllm.ops.quantized import dequantize, quantize
from vllm.ops.triton.moe import ExpertMatrices, Experts, chosen_products, moe
from vllm.ops.triton.quantized_moe import QuantizedExperts


@given(
    tokens=st.integers(1, 40),
    experts=st.tuples(st.integers(1, 9), st.integers(1, 4)).map(lambda pair: (pair[0], min(pair))),
    widths=st.tuples(st.integers(1, 150), st.integers(1, 150)),
    activation=st.sampled_from(["silu", "gelu"]),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    format=st.sampled_from([None, "int8", "int4", "fp8"]),
    gates=st.tuples(
        st.booleans(),
        st.booleans(),
        st.sampled_from([None, Clamp(0.7), Clamp(0.4, offset=1.0), Clamp(0.3, behind=True)]),
    ),
    most_sorted=st.sampled_from([0, 4096]),
    idle=st.integers(0, 2),
    seed=st.integers(0, 99),
)
@settings(max_examples=80, deadline=None)
def test_each_token_gets_what_its_experts_make_of_it(
    *,
    tokens: int,
    experts: tuple[int, int],
    widths: tuple[int, int],
    activation: str,
    dtype: torch.dtype,
    format: str | None,
    gates: tuple[bool, bool, Clamp | None],
    most_sorted: int,
    idle: int,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    (count, chosen), (outer, inner), (gated, bias, clamp) = experts, widths, gates
    gated = gated or clamp is not None
    sizes = ((2 * inner if gated else inner, outer, gated and clamp is None), (outer, inner, False))
    pairs = [_experts(count, *size, bias=bias, dtype=dtype, format=format) for size in sizes]
    stacked, plain = zip(*pairs, strict=True)
    x, weights = torch.randn(tokens, outer).to(dtype), torch.rand(tokens, chosen)
    ids = torch.stack([torch.randperm(count + idle)[:chosen] for _ in range(tokens)])
    with patch("vllm.ops.triton.moe._MOST_SORTED", most_sorted):
        given = (part.to(DEVICE) for part in (x, weights, ids))
        got = moe(*given, *stacked, activation=activation, clamp=clamp, identities=idle > 0).cpu()
    expected = moe_torch(x, weights, ids, *plain, activation=activation, clamp=clamp, identities=idle > 0)
    tolerance = 3e-5 if dtype == torch.float32 else 8e-3
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


@given(
    tokens=st.integers(1, 40),
    experts=st.tuples(st.integers(1, 9), st.integers(1, 4)).map(lambda pair: (pair[0], min(pair))),
    widths=st.tuples(st.integers(1, 150), st.integers(1, 150)),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    format=st.sampled_from([None, "int8", "int4", "fp8"]),
    most_sorted=st.sampled_from([0, 4096]),
)
@settings(max_examples=30, deadline=None)
def test_each_token_gets_what_its_matrices_make_of_it(
    *,
    tokens: int,
    experts: tuple[int, int],
    widths: tuple[int, int],
    dtype: torch.dtype,
    format: str | None,
    most_sorted: int,
) -> None:
    torch.manual_seed(tokens)
    (count, chosen), (rows, width) = experts, widths
    stacked, plain = _experts(count, rows, width, False, bias=False, dtype=dtype, format=format)
    x, weights = torch.randn(tokens, width).to(dtype), torch.rand(tokens, chosen)
    ids = torch.stack([torch.randperm(count)[:chosen] for _ in range(tokens)])
    with patch("vllm.ops.triton.moe._MOST_SORTED", most_sorted):
        got = chosen_products(x.to(DEVICE), weights.to(DEVICE), ids.to(DEVICE), stacked, activation="silu").cpu()
    expected = chosen_torch(x, weights, ids, plain, activation="silu")
    tolerance = 3e-5 if dtype == torch.float32 else 8e-3
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def _experts(
    count: int, rows: int, width: int, gated: bool, *, bias: bool, dtype: torch.dtype, format: str | None
) -> tuple[Experts, nn.ModuleList]:
    """Make random experts and plain ones that hold what is left of them in a format."""
    shape = MatrixShape(rows, width, dtype, DEVICE, bias, gated, format)
    ours = ExpertMatrices(count, shape) if format is None else QuantizedExperts(count, shape)
    plain = nn.ModuleList(
        DenseMatrix(MatrixShape(rows, width, dtype, torch.device("cpu"), bias, gated)) for _ in range(count)
    )
    for one, other in zip(ours, plain, strict=True):
        weight, biases = torch.randn(rows, width).to(dtype) / width**0.5, torch.randn(rows).to(dtype)
        for part in torch.arange(rows).split(rows - rows // 3):
            one.place(int(part[0]), len(part)).put(weight[part])
        other.place(0, rows).put(weight if format is None else _rounded(weight, format))
        if bias:
            one.bias_place(0, rows).put(biases)
            other.bias_place(0, rows).put(biases)
    return ours, plain


def _rounded(weight: torch.Tensor, format: str) -> torch.Tensor:
    padded = F.pad(weight, (0, -weight.shape[1] % 128))
    return dequantize(*quantize(padded, format), torch.float32)[:, : weight.shape[1]].to(weight.dtype)


@pytest.mark.parametrize("format", ["int8", "int4", "fp8"])
def test_what_rounded_experts_take_is_known_before(format: str) -> None:
    experts = QuantizedExperts(3, MatrixShape(10, 200, torch.float16, DEVICE, True, False, format))
    kept = sum(part.nbytes for part in experts.kept if part is not None)
    assert sum(matrix.num_bytes for matrix in experts) == kept
    assert {part.untyped_storage().data_ptr() for part in experts.parameters()} == {
        part.untyped_storage().data_ptr() for part in experts.kept if part is not None
    }
