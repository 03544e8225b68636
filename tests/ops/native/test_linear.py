"""Products of the native kernels against products in float32, for every format of the weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.ops.conftest import matrix_of
from vllm.ops.activations import ACTIVATIONS
from vllm.ops.activations import activation as activate
from vllm.ops.matrix import MatrixShape
from vllm.ops.native import set_threads
from vllm.ops.native.matrix import NativeMatrix, refuses

CPU = torch.device("cpu")
FORMATS = [None, "int8", "int4"]
examples = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape).to(dtype)


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got.float() - expected.float()).norm() / expected.float().norm().clamp(min=1e-9))


def recovered(weight: Tensor, format: str | None) -> Tensor:
    """Return the values that a matrix holds for some weights."""
    if format is None:
        return weight.float()
    width = weight.shape[1]  # of a row with one value that isn't 0, activations of 8 bits are exact
    return matrix_of(weight, format=format).multiply(127 * torch.eye(width)).T / 127


def rounded(x: Tensor, format: str | None) -> Tensor:
    """Return activations as the product of a format sees them: in 8 bits, with a scale per row and 128 elements."""
    if format is None:
        return x.float()
    blocks = torch.nn.functional.pad(x.float(), (0, -x.shape[1] % 128)).unflatten(1, (-1, 128))
    most = blocks.abs().amax(2, keepdim=True)
    values = torch.where(most > 0, blocks * torch.full_like(most, 127).div(most), 0).round()
    return (values * (most / 127)).flatten(1)[:, : x.shape[1]]


@given(data=st.data())
@examples
def test_any_shape_agrees_with_a_product_in_float32(data: st.DataObject) -> None:
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    rows, height, width = (data.draw(st.integers(1, most)) for most in (70, 100, 300))
    dtype, format = data.draw(st.sampled_from([torch.float32, torch.bfloat16])), data.draw(st.sampled_from(FORMATS))
    gated, biased = data.draw(st.booleans()), data.draw(st.booleans())
    name = data.draw(st.sampled_from([*ACTIVATIONS] if gated else [None, *ACTIVATIONS]))
    width += width % 2 if dtype == torch.bfloat16 else 0
    height += height % 2 if gated else 0
    columns = height // 2 if gated else height
    weight, bias = normal(height, width, dtype=dtype), normal(height, dtype=dtype) if biased else None
    x, residual = normal(rows, width + 3, dtype=dtype)[:, :width], normal(rows, columns + 2, dtype=dtype)[:, :columns]
    matrix = matrix_of(weight, bias, gated=gated, format=format)
    assert isinstance(matrix, NativeMatrix)
    got = matrix.multiply(x, activation=name, residual=residual, dtype=torch.float32)

    sums = rounded(x, format) @ recovered(weight, format).T + (0 if bias is None else bias.float())
    gate, up = sums.chunk(2, 1) if gated else (sums, torch.ones(()))
    expected = (gate if name is None else activate(gate, name)) * up + residual.float()
    # float32 sums of up to 300 products, of values of size 1; squares and products of two of them
    largest = float(sums.abs().max()) ** 2 + 1
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=3e-6 * largest)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_gets_the_same_bits_among_any_others(format: str | None, dtype: torch.dtype) -> None:
    for height, width, gated in ((40, 256, True), (33, 130, False)):
        matrix = matrix_of(normal(height, width, dtype=dtype), normal(height, dtype=dtype), gated=gated, format=format)
        x = normal(70, width, dtype=dtype)
        name = "gelu" if gated else None
        together = matrix.multiply(x, activation=name)
        for threads in (1, 2, 3):
            set_threads(threads)
            for rows in (1, 2, 3, 5, 8, 12, 13, 16, 17, 31, 33, 48, 49, 64, 70):
                assert torch.equal(matrix.multiply(x[-rows:], activation=name), together[-rows:])


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_not_finite_stays_in_its_row(format: str | None, dtype: torch.dtype) -> None:
    matrix = matrix_of(normal(20, 200, dtype=dtype), format=format)
    x = normal(30, 200, dtype=dtype)
    clean = matrix.multiply(x)
    for value in (torch.nan, torch.inf, -torch.inf):
        spoiled = x.clone()
        spoiled[7, 150] = value
        for rows in (slice(None), slice(5, 12)):
            got = matrix.multiply(spoiled[rows])
            good = torch.arange(30)[rows] != 7
            assert not got[~good].isfinite().any()
            assert torch.equal(got[good], clean[rows][good])


@pytest.mark.parametrize("kept", [38, 64])
def test_what_lies_behind_a_row_is_not_read(kept: int) -> None:
    weight, x = normal(33, 80, dtype=torch.bfloat16), normal(20, kept, dtype=torch.bfloat16)
    expected = x.float() @ weight[:, :kept].float().T
    weight[:, kept:] = torch.nan
    got = matrix_of(weight[:, :kept]).multiply(x, dtype=torch.float32)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)


def test_parts_may_come_in_any_order_and_from_anywhere() -> None:
    q, k, v = normal(24, 64), normal(7, 128)[:, ::2].contiguous(), normal(64, 10).T
    matrix = NativeMatrix(MatrixShape(41, 64, torch.float32, CPU))
    for first, part in ((31, v), (0, q), (24, k)):
        matrix.place(first, len(part)).put(part)
    x = normal(3, 64)
    torch.testing.assert_close(matrix.multiply(x), x @ torch.cat((q, k, v)).T)


def test_a_gate_that_comes_with_up_in_one_tensor_is_told_apart() -> None:
    both, x = normal(2 * 21, 32), normal(5, 32)
    expected = torch.relu(x @ both[:21].T) * (x @ both[21:].T)
    torch.testing.assert_close(matrix_of(both, gated=True).multiply(x, activation="relu"), expected)


def test_weights_that_need_no_conversion_are_not_copied() -> None:
    weight = normal(32, 64)
    matrix = matrix_of(weight)
    x = normal(1, 64)
    before = matrix.multiply(x)
    weight.mul_(2)
    assert torch.equal(matrix.multiply(x), 2 * before)


@pytest.mark.parametrize("format, limit", [("int8", 0.009), ("int4", 0.09)])
def test_quantized_weights_are_near_the_weights(format: str, limit: float) -> None:
    weight = normal(64, 256)
    recovered = matrix_of(weight, format=format).multiply(torch.eye(256) * 127).T / 127  # activations are exact
    assert relative(recovered, weight) < limit


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_rows_of_zeros_are_quantized_to_zeros(format: str) -> None:
    weight = normal(20, 128)
    weight[3] = 0
    assert (matrix_of(weight, format=format).multiply(normal(4, 128))[:, 3] == 0).all()


def test_the_kernels_refuse_what_they_cannot_hold_in_words() -> None:
    assert refuses(MatrixShape(4, 4, torch.float16, CPU)) is not None
    assert refuses(MatrixShape(4, 5, torch.bfloat16, CPU)) is not None
    assert refuses(MatrixShape(4, 5, torch.bfloat16, CPU, format="int8")) is None
    assert refuses(MatrixShape(4, 5, torch.float32, CPU)) is None
