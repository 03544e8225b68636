"""A mixture of experts for GPUs, in the interpreter, against plain torch."""

from __future__ import annotations

from unittest.mock import patch

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vllm.ops.activations import Clamp
from vllm.ops.matrix import DenseMatrix, MatrixShape
from vllm.ops.moe import moe as moe_torch
from vllm.ops.triton.moe import ExpertMatrices, moe


@given(
    tokens=st.integers(1, 40),
    experts=st.tuples(st.integers(1, 9), st.integers(1, 4)).map(lambda pair: (pair[0], min(pair))),
    widths=st.tuples(st.integers(1, 100), st.integers(1, 100)),
    activation=st.sampled_from(["silu", "gelu"]),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    gates=st.tuples(st.booleans(), st.booleans(), st.sampled_from([None, Clamp(0.7), Clamp(0.4, offset=1.0)])),
    most_sorted=st.sampled_from([0, 4096]),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_each_token_gets_what_its_experts_make_of_it(
    *,
    tokens: int,
    experts: tuple[int, int],
    widths: tuple[int, int],
    activation: str,
    dtype: torch.dtype,
    gates: tuple[bool, bool, Clamp | None],
    most_sorted: int,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    (count, chosen), (outer, inner), (gated, bias, clamp) = experts, widths, gates
    cpu = torch.device("cpu")
    gated = gated or clamp is not None
    shapes = (
        MatrixShape(2 * inner if gated else inner, outer, dtype, cpu, bias, gated=gated and clamp is None),
        MatrixShape(outer, inner, dtype, cpu, bias),
    )
    stacked = [ExpertMatrices(count, shape) for shape in shapes]
    plain = [nn.ModuleList(DenseMatrix(shape) for _ in range(count)) for shape in shapes]
    for some, others, shape in zip(stacked, plain, shapes, strict=True):
        for one, other in zip(some, others, strict=True):
            values = torch.randn(shape.rows, shape.width).to(dtype) / shape.width**0.5
            one.place(0, shape.rows).put(values)
            other.place(0, shape.rows).put(values)
            if bias:
                values = torch.randn(shape.rows).to(dtype)
                one.bias_place(0, shape.rows).put(values)
                other.bias_place(0, shape.rows).put(values)
    x, weights = torch.randn(tokens, outer).to(dtype), torch.rand(tokens, chosen)
    ids = torch.stack([torch.randperm(count)[:chosen] for _ in range(tokens)])
    with patch("vllm.ops.triton.moe._MOST_SORTED", most_sorted):
        got = moe(x, weights, ids, *stacked, activation=activation, clamp=clamp)
    expected = moe_torch(x, weights, ids, *plain, activation=activation, clamp=clamp)
    tolerance = 2e-5 if dtype == torch.float32 else 8e-3
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)
