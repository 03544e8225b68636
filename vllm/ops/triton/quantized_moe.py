"""Experts in few bits on a GPU: the same tiles as those of moe.py, of numbers that are widened in registers (quantized.py).

A tile's rows are those of the weights and its columns the tokens: what Hopper multiplies with may come from registers on the left
side only.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vllm.ops.matrix import MatrixShape
from vllm.ops.quantized import GROUP
from vllm.ops.triton.early import let_next_start, wait_for_last
from vllm.ops.triton.moe import Experts, Product, rows_of_tile, shared_memory, store_tile
from vllm.ops.triton.quantized import STEP, QuantizedMatrix, Rounded, scaled

_COLUMNS = 64
_STAGES = 4


class QuantizedExperts(Experts):
    """Matrices in int8, fp8 or int4 that lie in one tensor."""

    def __init__(self, count: int, shape: MatrixShape) -> None:
        kept = Rounded.empty(shape, count)
        super().__init__((QuantizedMatrix(shape, kept.of(index)) for index in range(count)), shape)
        self.kept = kept
        self.most_rows = 32 if shape.dtype.itemsize == 4 else 128

    def multiply(self, product: Product) -> None:
        x, out, plan, length = product.x, product.out, product.plan, product.out.shape[1]
        numbers, scales, bias = self.kept
        step_bytes = STEP * (product.rows * x.itemsize + _COLUMNS * (2 if product.gated else 1))
        stages = max(1, min(_STAGES, shared_memory(x.device) // step_bytes - 1))
        _quantized_tile[(len(plan.owner), triton.cdiv(length, _COLUMNS))](
            x, numbers, scales, scales if bias is None else bias, out, *plan, product.weights, len(self), length,
            x.shape[1], x.stride(0), numbers.stride(1), *product.bounds, N=_COLUMNS, STEP=STEP, GROUP=GROUP,
            INT4=scales.dim() == 3, BIAS=bias is not None, **product.flags,
            num_warps=8 if product.rows == 128 else 4, num_stages=stages,
        )  # fmt: skip


@triton.jit
def _half(numbers, scales, row, rows, step, mask, STEP: tl.constexpr, GROUP: tl.constexpr, dtype: tl.constexpr):
    """Multiply half of the columns of a step of some rows with their scales."""
    groups: tl.constexpr = STEP // 2 // GROUP
    own = scales + (step // GROUP + tl.arange(0, groups))[None, :] * rows + row[:, None]
    spread = tl.broadcast_to(tl.load(own, mask, 0.0)[:, :, None], [row.shape[0], groups, GROUP])
    return scaled(numbers, tl.reshape(spread, [row.shape[0], STEP // 2]), dtype)


@triton.jit
def _halves(
    total, low_values, high_values, numbers, scales, row, rows, step, mask,
    STEP: tl.constexpr, GROUP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add the products with some rows' columns of a step, two of which are in a byte."""
    half: tl.constexpr = STEP // 2
    pair = tl.load(numbers + tl.arange(0, half)[None, :], mask, 0)
    low = _half((pair << 4) >> 4, scales, row, rows, step, mask, STEP, GROUP, low_values.dtype)
    total = tl.dot(low, low_values, total, input_precision=PRECISION)
    high = _half(pair >> 4, scales, row, rows, step + half, mask, STEP, GROUP, low_values.dtype)
    return tl.dot(high, high_values, total, input_precision=PRECISION)


@triton.jit
def _quantized_tile(
    x, numbers, scales, bias, out, order, owner, ends, counts, last, scale, experts, length, width, x_row, numbers_row,
    limit, offset,
    K: tl.constexpr, M: tl.constexpr, N: tl.constexpr, STEP: tl.constexpr, GROUP: tl.constexpr, INT4: tl.constexpr,
    FIRST: tl.constexpr, GATED: tl.constexpr, KIND: tl.constexpr, BIAS: tl.constexpr, CLAMP: tl.constexpr,
    PRECISION: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Multiply a tile of one expert's rows; see _tile of moe.py."""
    let_next_start(EARLY)
    wait_for_last(EARLY)
    tile = tl.program_id(0)
    expert = tl.load(owner + tile)
    if expert >= experts:
        return
    row, alive, choice = rows_of_tile(order, ends, counts, last, expert, tile, M)
    source = choice // K if FIRST else row
    n = tl.program_id(1) * N + tl.arange(0, N)
    inside = (n < length)[:, None]
    rows = 2 * length if GATED else length
    up = n + length if GATED else n
    expert = expert.to(tl.int64)
    gates = numbers + (expert * rows + n)[:, None] * numbers_row
    ups = numbers + (expert * rows + up)[:, None] * numbers_row
    own = scales + expert * rows * (tl.cdiv(width, STEP) * (STEP // GROUP) if INT4 else 1)
    ours = x + source[None, :] * x_row
    total = tl.zeros([N, M], tl.float32)
    gate = tl.zeros([N, M], tl.float32)
    for step in tl.range(0, width, STEP):
        if INT4:
            k = step + tl.arange(0, STEP // 2)[:, None]
            low = tl.load(ours + k, alive[None, :] & (k < width), 0.0)
            k += STEP // 2
            high = tl.load(ours + k, alive[None, :] & (k < width), 0.0)
            total = _halves(total, low, high, ups + step // 2, own, up, rows, step, inside, STEP, GROUP, PRECISION)
            if GATED:
                gate = _halves(gate, low, high, gates + step // 2, own, n, rows, step, inside, STEP, GROUP, PRECISION)
        else:
            k = step + tl.arange(0, STEP)
            values = tl.load(ours + k[:, None], alive[None, :] & (k < width)[:, None], 0.0)
            part = tl.load(ups + k[None, :], inside, 0.0).to(values.dtype)
            total = tl.dot(part, values, total, input_precision=PRECISION)
            if GATED:
                part = tl.load(gates + k[None, :], inside, 0.0).to(values.dtype)
                gate = tl.dot(part, values, gate, input_precision=PRECISION)
    if not INT4:
        total *= tl.load(own + up, n < length, 0.0)[:, None]
        if GATED:
            gate *= tl.load(own + n, n < length, 0.0)[:, None]
    store_tile(
        tl.trans(total), tl.trans(gate), bias, out, scale, expert, row, alive, choice, n, length, limit, offset,
        FIRST, GATED, KIND, BIAS, CLAMP,
    )  # fmt: skip
