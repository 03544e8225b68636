"""Matrices in few bits on a GPU: numbers are widened in registers, where few rows are multiplied; for many rows the whole
matrix is widened first and cuBLAS multiplies.

    int8, fp8   [N, W] a byte each, W being D rounded up to 128
    int4        [N, W / 2]: of 128 columns, byte j holds column j in its low half and column 64 + j in its high half
    scales      [N], of int4 [W / 32, N]

Products of few rows are cut along D too, so that there is work for the whole device; a second kernel adds up the pieces, scales
and does what comes after.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor, nn

from vllm.ops.activations import CODES
from vllm.ops.matrix import Matrix, MatrixShape, RowsPlace
from vllm.ops.quantized import FLOAT8, GROUP, quantize
from vllm.ops.triton.activations import activate
from vllm.ops.triton.early import early, let_next_start, wait_for_last
from vllm.ops.triton.matrix import multiply_rows
from vllm.weights import Place, TensorPlace

STEP = 128
_FEW = {"int8": 256, "fp8": 256, "int4": 64}
"""Rows that are multiplied with numbers widened in registers: on an H100 more take less time the other way."""
_PROGRAMS = 264
"""Two for each processor of the largest device there is."""
_LEAST_STEPS = 4
_FINISH = 1024
_AT_ONCE = 8192
"""Rows that are rounded at a time, which takes a few times their memory."""
_NUMBERS = {"int8": torch.int8, "fp8": FLOAT8, "int4": torch.int8}


def refuses(shape: MatrixShape) -> str | None:
    """Return why a GPU can't hold such a matrix; None if it can."""
    if shape.format not in _NUMBERS:
        return f"it is none of {', '.join(_NUMBERS)}"
    if shape.format == "fp8" and shape.device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(shape.device)
        if (major, minor) < (8, 9):
            return f"it needs compute capability 8.9, and this GPU has {major}.{minor}; use int8"
    return None


class Rounded(NamedTuple):
    """What a matrix is kept as, or with a dimension in front what some are."""

    numbers: Tensor
    scales: Tensor
    bias: Tensor | None

    @classmethod
    def empty(cls, shape: MatrixShape, *count: int) -> Rounded:
        """Return memory for a matrix, or some."""
        assert shape.format is not None
        width, is_int4 = -(-shape.width // STEP) * STEP, shape.format == "int4"

        def kept(*size: int, dtype: torch.dtype) -> Tensor:
            return torch.empty(*count, *size, dtype=dtype, device=shape.device)

        return cls(
            kept(shape.rows, width // 2 if is_int4 else width, dtype=_NUMBERS[shape.format]),
            kept(width // GROUP, shape.rows, dtype=torch.bfloat16)
            if is_int4
            else kept(shape.rows, dtype=torch.float32),
            kept(shape.rows, dtype=shape.dtype).zero_() if shape.bias else None,
        )

    def of(self, index: int) -> Rounded:
        """Return one of some."""
        return Rounded(self.numbers[index], self.scales[index], None if self.bias is None else self.bias[index])


class QuantizedMatrix(Matrix):
    """Rows of weights in int8, fp8 or int4."""

    def __init__(self, shape: MatrixShape, kept: Rounded | None = None) -> None:
        """`kept` is where it lies, if not in memory of its own."""
        kept = kept or Rounded.empty(shape)
        super().__init__(shape, sum(part.nbytes for part in kept if part is not None))
        self.numbers, self.scales = (nn.Parameter(part, requires_grad=False) for part in kept[:2])
        self.bias = None if kept.bias is None else nn.Parameter(kept.bias, requires_grad=False)

    def place(self, first: int, rows: int) -> Place:
        return RowsPlace(self.shape, first, rows, self.put)

    def bias_place(self, first: int, rows: int) -> Place:
        assert self.bias is not None
        return TensorPlace(self.bias[first : first + rows])

    def put(self, first: int, content: Tensor) -> None:
        """Round rows, on the device, and keep them.  [rows, width]"""
        for part in content.split(_AT_ONCE):
            self._put(first, part.to(self.shape.device))
            first += len(part)

    def _put(self, first: int, content: Tensor) -> None:
        assert self.shape.format is not None
        rows = slice(first, first + len(content))
        numbers, scales = quantize(F.pad(content, (0, -content.shape[1] % STEP)), self.shape.format)
        if self.shape.format == "int4":
            self.scales[:, rows] = scales.t()
            low, high = numbers.unflatten(1, (-1, 2, STEP // 2)).unbind(2)
            self.numbers[rows] = (low & 15 | high << 4).flatten(1)
        else:
            self.scales[rows] = scales
            self.numbers[rows] = numbers

    def multiply(
        self,
        x: Tensor,
        *,
        activation: str | None = None,
        residual: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        assert self.shape.format is not None
        gated = self.shape.gated
        if len(x) > _FEW[self.shape.format]:
            return multiply_rows(
                x, self.widened(x.dtype), self.bias, gated=gated, activation=activation, residual=residual, dtype=dtype
            )
        parts = _multiply(x, self.numbers, self.scales, self.shape.rows)
        columns = self.shape.rows // 2 if gated else self.shape.rows
        out = torch.empty(len(x), columns, dtype=dtype or x.dtype, device=x.device)
        _finish[(len(x), triton.cdiv(columns, _FINISH))](
            parts, self.scales, parts if self.bias is None else self.bias, parts if residual is None else residual, out,
            len(parts), len(x), columns, 0 if residual is None else residual.stride(0), GATED=gated,
            SCALED=self.scales.dim() == 1, BIAS=self.bias is not None, RESIDUAL=residual is not None,
            KIND=CODES[activation], WITHIN=_within(x.dtype), BLOCK=_FINISH, num_warps=4, **early(x.device),
        )  # fmt: skip
        return out

    def widened(self, dtype: torch.dtype) -> Tensor:
        """Return all rows as numbers of `dtype`.  -> [rows, width]"""
        rows, width = self.shape.rows, self.shape.width
        out = torch.empty(rows, width, dtype=dtype, device=self.numbers.device)
        _widen[(triton.cdiv(rows, 32), triton.cdiv(width, STEP))](
            self.numbers, self.scales, out, rows, width, self.numbers.stride(0), INT4=self.scales.dim() == 2,
            N=32, STEP=STEP, GROUP=GROUP, num_warps=4,
        )  # fmt: skip
        return out


def _within(dtype: torch.dtype) -> tl.dtype:
    """Return what a product is rounded to before an activation."""
    return {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}[dtype]


def _multiply(x: Tensor, numbers: Tensor, scales: Tensor, rows: int) -> Tensor:
    """Multiply few rows, in pieces along D.  [T, D] -> [pieces, T, N] float32"""
    is_int4 = scales.dim() == 2
    tile = max(16, min(32 if x.dtype == torch.float32 else 128, triton.next_power_of_2(len(x))))
    columns = 32 if is_int4 and tile == 64 else 128 if tile == 128 else 64
    steps = numbers.shape[1] * (2 if is_int4 else 1) // STEP
    grid = triton.cdiv(len(x), tile), triton.cdiv(rows, columns)
    pieces = max(1, min(_PROGRAMS // (grid[0] * grid[1]), steps // _LEAST_STEPS))
    each = triton.cdiv(steps, pieces)
    pieces = triton.cdiv(steps, each)
    parts = torch.empty(pieces, len(x), rows, dtype=torch.float32, device=x.device)
    _multiply_few[(*grid, pieces)](
        x, numbers, scales, parts, len(x), rows, x.shape[1], x.stride(0), numbers.stride(0), steps, each, INT4=is_int4,
        M=tile, N=columns, STEP=STEP, GROUP=GROUP, PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
        num_warps=4 if tile <= 64 else 8, num_stages=max(2, min(4, 192 // tile)), **early(x.device),
    )  # fmt: skip
    return parts


@triton.jit
def scaled(numbers, scales, dtype: tl.constexpr):
    """Multiply numbers of 4 bits with their scales.  In bfloat16 that rounds once, as it does by way of float32."""
    if dtype == tl.bfloat16:
        return numbers.to(dtype) * scales
    return (numbers.to(tl.float32) * scales.to(tl.float32)).to(dtype)


@triton.jit
def _multiply_few(
    x, numbers, scales, parts, tokens, rows, width, x_row, numbers_row, steps, each,
    INT4: tl.constexpr, M: tl.constexpr, N: tl.constexpr, STEP: tl.constexpr, GROUP: tl.constexpr,
    PRECISION: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    let_next_start(EARLY)
    wait_for_last(EARLY)
    t = tl.program_id(0) * M + tl.arange(0, M)
    n = tl.program_id(1) * N + tl.arange(0, N)
    piece = tl.program_id(2)
    alive, inside = (t < tokens)[:, None], (n < rows)[None, :]
    ours = x + t.to(tl.int64)[:, None] * x_row
    matrix = numbers + n.to(tl.int64)[None, :] * numbers_row
    dtype: tl.constexpr = x.dtype.element_ty
    total = tl.zeros([M, N], tl.float32)
    for step in tl.range(piece * each, tl.minimum(steps, (piece + 1) * each)):
        if INT4:
            j = tl.arange(0, STEP // 2)
            pair = tl.load(matrix + step * (STEP // 2) + j[:, None], inside, 0)
            group = scales + (step * (STEP // GROUP) + j // GROUP)[:, None] * rows + n[None, :]
            k = step * STEP + j
            low = scaled((pair << 4) >> 4, tl.load(group, inside, 0.0), dtype)
            values = tl.load(ours + k[None, :], alive & (k < width)[None, :], 0.0)
            total = tl.dot(values, low, total, input_precision=PRECISION)
            k += STEP // 2
            group += STEP // 2 // GROUP * rows
            high = scaled(pair >> 4, tl.load(group, inside, 0.0), dtype)
            values = tl.load(ours + k[None, :], alive & (k < width)[None, :], 0.0)
            total = tl.dot(values, high, total, input_precision=PRECISION)
        else:
            k = step * STEP + tl.arange(0, STEP)
            part = tl.load(matrix + k[:, None], inside, 0.0)
            values = tl.load(ours + k[None, :], alive & (k < width)[None, :], 0.0)
            total = tl.dot(values, part.to(dtype), total, input_precision=PRECISION)
    place = (piece.to(tl.int64) * tokens + t[:, None]) * rows + n[None, :]
    tl.store(parts + place, total, alive & inside)


@triton.jit
def _finished(parts, scales, bias, pieces, tokens, row, rows, n, inside, SCALED: tl.constexpr, BIAS: tl.constexpr):
    """Add up the pieces of some elements of a row (int64), scale them and add their biases."""
    total = tl.zeros(n.shape, tl.float32)
    for piece in tl.range(0, pieces):
        total += tl.load(parts + (piece * tokens + row) * rows + n, inside, 0.0)
    if SCALED:
        total *= tl.load(scales + n, inside, 0.0)
    if BIAS:
        total += tl.load(bias + n, inside, 0.0).to(tl.float32)
    return total


@triton.jit
def _finish(
    parts, scales, bias, residual, out, pieces, tokens, columns, residual_row,
    GATED: tl.constexpr, SCALED: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, KIND: tl.constexpr,
    WITHIN: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    let_next_start(EARLY)
    wait_for_last(EARLY)
    row = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = n < columns
    rows = columns * 2 if GATED else columns
    y = _finished(parts, scales, bias, pieces, tokens, row, rows, n, inside, SCALED, BIAS)
    if GATED:
        up = _finished(parts, scales, bias, pieces, tokens, row, rows, columns + n, inside, SCALED, BIAS)
        y = activate(y.to(WITHIN).to(tl.float32), KIND).to(WITHIN).to(tl.float32) * up.to(WITHIN).to(tl.float32)
    elif KIND != 0:
        y = activate(y.to(WITHIN).to(tl.float32), KIND)
    if RESIDUAL:
        y = y.to(WITHIN).to(tl.float32) + tl.load(residual + row * residual_row + n, inside, 0.0).to(tl.float32)
    tl.store(out + row * columns + n, y.to(out.dtype.element_ty), inside)


@triton.jit
def _widen(
    numbers, scales, out, rows, width, numbers_row,
    INT4: tl.constexpr, N: tl.constexpr, STEP: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * N + tl.arange(0, N)
    step = tl.program_id(1)
    inside = n < rows
    target = out + n.to(tl.int64)[:, None] * width
    dtype: tl.constexpr = out.dtype.element_ty
    if INT4:
        j = tl.arange(0, STEP // 2)
        pair = tl.load(
            numbers + n.to(tl.int64)[:, None] * numbers_row + step * (STEP // 2) + j[None, :], inside[:, None], 0
        )
        group = scales + (step * (STEP // GROUP) + j // GROUP)[None, :] * rows + n[:, None]
        k = step * STEP + j[None, :]
        low = scaled((pair << 4) >> 4, tl.load(group, inside[:, None], 0.0), dtype)
        tl.store(target + k, low, inside[:, None] & (k < width))
        k += STEP // 2
        group += STEP // 2 // GROUP * rows
        high = scaled(pair >> 4, tl.load(group, inside[:, None], 0.0), dtype)
        tl.store(target + k, high, inside[:, None] & (k < width))
    else:
        k = step * STEP + tl.arange(0, STEP)[None, :]
        part = tl.load(numbers + n.to(tl.int64)[:, None] * numbers_row + k, inside[:, None], 0.0).to(tl.float32)
        wide = part * tl.load(scales + n, inside, 0.0)[:, None]
        tl.store(target + k, wide.to(dtype), inside[:, None] & (k < width))
