"""Norms, rotary embedding and activations for GPUs, against plain torch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm.ops import activations, norms
from vllm.ops.rotary import rotary as rotary_torch
from vllm.ops.triton import activations as activations_triton
from vllm.ops.triton import norms as norms_triton
from vllm.ops.triton import rotary as rotary_triton

pytestmark = pytest.mark.usefixtures("all_there")

DTYPES = st.sampled_from([torch.float32, torch.float16])
FEW = settings(max_examples=25, deadline=None)


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = 2e-5 if expected.dtype == torch.float32 else 4e-3
    assert got.dtype == expected.dtype
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def heads_of(tokens: int, heads: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    """Return [T, H, E] inside of longer rows, as a product of several parts leaves it."""
    return torch.randn(tokens, heads * width + 5).to(dtype)[:, : heads * width].unflatten(1, (heads, width))


@given(
    tokens=st.integers(1, 5), heads=st.integers(1, 4), width=st.integers(1, 90), dtype=DTYPES,
    offset=st.sampled_from([0.0, 1.0]), residual=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
@FEW
def test_rms_norm(
    tokens: int, heads: int, width: int, dtype: torch.dtype, offset: float, residual: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    x, weight = heads_of(tokens, heads, width, dtype), torch.randn(width).to(dtype)
    beside = torch.randn(x.shape).to(dtype) if residual else None
    close(norms_triton.rms_norm(x, weight, 1e-5, offset, beside), norms.rms_norm(x, weight, 1e-5, offset, beside))


@given(
    tokens=st.integers(1, 5), width=st.integers(2, 300), dtype=DTYPES, weight=st.booleans(), bias=st.booleans(),
    seed=st.integers(0, 99),
)  # fmt: skip
@FEW
def test_layer_norm(tokens: int, width: int, dtype: torch.dtype, weight: bool, bias: bool, seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(tokens, width).to(dtype)
    w = torch.randn(width).to(dtype) if weight else None
    b = torch.randn(width).to(dtype) if bias else None
    close(norms_triton.layer_norm(x, w, b, 1e-5), norms.layer_norm(x, w, b, 1e-5))


@given(
    tokens=st.integers(1, 5), heads=st.tuples(st.integers(1, 20), st.integers(1, 3)), half=st.integers(1, 20),
    rest=st.integers(0, 6), interleaved=st.booleans(), dtype=DTYPES, seed=st.integers(0, 99),
)  # fmt: skip
@FEW
def test_rotary(
    tokens: int, heads: tuple[int, int], half: int, rest: int, interleaved: bool, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    q, k = (heads_of(tokens, count, 2 * half + rest, dtype) for count in heads)
    angles = torch.rand(50, half) * 7
    table, positions = torch.cat((angles.cos(), angles.sin()), dim=1), torch.randint(0, 50, (tokens,))
    expected = rotary_torch(q.clone(), k.clone(), table, positions, interleaved)
    for got, wanted in zip(rotary_triton.rotary(q, k, table, positions, interleaved), expected, strict=True):
        close(got, wanted)


@pytest.mark.parametrize("name", activations.ACTIVATIONS)
@given(tokens=st.integers(1, 3), width=st.integers(1, 1100), dtype=DTYPES, seed=st.integers(0, 99))
@settings(max_examples=4, deadline=None)
def test_activations(name: str, tokens: int, width: int, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    x = (torch.randn(tokens, 2 * width) * 6).to(dtype)
    close(activations_triton.activation(x, name), activations.activation(x, name))
    close(activations_triton.gated_activation(x, name), activations.gated_activation(x, name))
