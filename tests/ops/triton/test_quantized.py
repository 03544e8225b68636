"""Products with rounded matrices for GPUs, against plain torch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.triton import DEVICE
from vllm.ops.matrix import DenseMatrix, MatrixShape
from vllm.ops.quantized import dequantize, quantize
from vllm.ops.triton import quantized
from vllm.ops.triton.quantized import QuantizedMatrix

pytestmark = pytest.mark.usefixtures("all_there")

FORMATS = ["int8", "int4", "fp8"]


@pytest.mark.parametrize("format", FORMATS)
@given(
    tokens=st.sampled_from([1, 2, 17, 40, 64]),
    size=st.tuples(st.integers(1, 70), st.integers(1, 300) | st.sampled_from([128, 640, 1024])),
    around=st.tuples(st.booleans(), st.sampled_from([None, "silu", "gated gelu", "gated relu2"]), st.booleans()),
    dtypes=st.sampled_from([(torch.float32, None), (torch.float16, None), (torch.float16, torch.float32)]),
    many=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=24, deadline=None)
def test_products(
    format: str,
    tokens: int,
    size: tuple[int, int],
    around: tuple[bool, str | None, bool],
    dtypes: tuple[torch.dtype, torch.dtype | None],
    many: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    (rows, width), (dtype, wanted), (bias, kind, residual) = size, dtypes, around
    gated = kind is not None and kind.startswith("gated")
    shape = MatrixShape(2 * rows if gated else rows, width, dtype, DEVICE, bias, gated, format)
    weight, biases = torch.randn(shape.rows, width).to(dtype) / width**0.5, torch.randn(shape.rows).to(dtype)
    weight[0] = 0
    padded = torch.nn.functional.pad(weight, (0, -width % 128))
    rounded = dequantize(*quantize(padded, format), torch.float32 if format != "int4" else dtype)[:, :width]
    x, beside = torch.randn(tokens, width).to(dtype), torch.randn(tokens, rows).to(dtype)
    matrix, dense = QuantizedMatrix(shape), DenseMatrix(shape)
    matrix.place(0, shape.rows - shape.rows // 3).put(weight[: shape.rows - shape.rows // 3])
    matrix.place(shape.rows - shape.rows // 3, shape.rows // 3).put(weight[shape.rows - shape.rows // 3 :])
    dense.place(0, shape.rows).put(rounded)
    for each in (matrix, dense) if bias else ():
        each.bias_place(0, shape.rows).put(biases)
    tolerance = 3e-5 if dtype == torch.float32 else 8e-3
    torch.testing.assert_close(matrix.widened(dtype), rounded.to(dtype), rtol=tolerance, atol=tolerance)
    options = {
        "activation": kind.removeprefix("gated ") if kind else None, "residual": beside if residual else None,
        "dtype": wanted,
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        if many:
            patch.setitem(quantized._FEW, format, 0)
        found = matrix.multiply(x, **options)  # type: ignore[arg-type]
    torch.testing.assert_close(found, dense.multiply(x, **options), rtol=tolerance, atol=tolerance)  # type: ignore[arg-type]


@pytest.mark.parametrize(("format", "most"), [("int8", 0.008), ("fp8", 0.03), ("int4", 0.09)])
def test_rounding_costs_little(format: str, most: float) -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 512)
    error = dequantize(*quantize(weight, format), torch.float32) - weight
    assert error.norm() / weight.norm() < most


def test_what_it_takes_is_known_before() -> None:
    for format in FORMATS:
        matrix = QuantizedMatrix(MatrixShape(10, 200, torch.float16, DEVICE, True, False, format))
        assert matrix.num_bytes == sum(parameter.nbytes for parameter in matrix.parameters())
