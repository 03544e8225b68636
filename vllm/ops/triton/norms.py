"""Normalisation over the last dimension, one program per row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vllm.ops.triton.early import early, let_next_start, wait_for_last


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float = 0.0, residual: Tensor | None = None) -> Tensor:
    """Divide by the root mean square, multiply with `offset + weight`, add the residual.  [..., D], [D] -> [..., D]"""
    rows, heads, strides = _as_rows(x)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    width = x.shape[-1]
    padded = triton.next_power_of_2(width)
    _rms_norm[(rows * heads,)](
        x, weight, x if residual is None else residual.contiguous(), out, heads, *strides, eps, offset,
        D=width, D_PADDED=padded, OFFSET=offset != 0.0, RESIDUAL=residual is not None, num_warps=_warps(padded),
        **early(x.device),
    )  # fmt: skip
    return out


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Bring each row to mean 0 and variance 1, then scale and shift.  [..., D], [D], [D] -> [..., D]"""
    rows, heads, strides = _as_rows(x)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    width = x.shape[-1]
    padded = triton.next_power_of_2(width)
    _layer_norm[(rows * heads,)](
        x, x if weight is None else weight, x if bias is None else bias, out, heads, *strides, eps,
        D=width, D_PADDED=padded, WEIGHT=weight is not None, BIAS=bias is not None, num_warps=_warps(padded),
        **early(x.device),
    )  # fmt: skip
    return out


def _as_rows(x: Tensor) -> tuple[int, int, tuple[int, int]]:
    """Return a tensor's rows as [R, H] with their strides: the heads of a token lie side by side, tokens need not."""
    if x.dim() > 3 or x.stride(-1) != 1:
        x = x.contiguous().flatten(0, -2)
    if x.dim() == 3:
        return x.shape[0], x.shape[1], (x.stride(0), x.stride(1))
    if x.dim() == 2:
        return x.shape[0], 1, (x.stride(0), 0)
    return 1, 1, (0, 0)


def _warps(padded: int) -> int:
    return min(max(padded // 512, 1), 8)


@triton.jit
def normalized(values, weight, width, eps, offset, OFFSET: tl.constexpr):
    """Divide a row by its root mean square and multiply with offset + weight.  Beyond `width` both are 0."""
    wide = values.to(tl.float32)
    wide = wide * (1 / tl.sqrt(tl.sum(wide * wide, 0) / width + eps))
    if OFFSET:
        return (wide * (offset + weight.to(tl.float32))).to(values.dtype)
    return (wide.to(values.dtype).to(tl.float32) * weight.to(tl.float32)).to(values.dtype)


@triton.jit
def _rms_norm(
    x, weight, residual, out, heads, x_row, x_head, eps, offset,
    D: tl.constexpr, D_PADDED: tl.constexpr, OFFSET: tl.constexpr, RESIDUAL: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    let_next_start(EARLY)
    wait_for_last(EARLY)
    program = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, D_PADDED)
    inside = d < D
    values = tl.load(x + program // heads * x_row + program % heads * x_head + d, inside, 0.0)
    dtype: tl.constexpr = out.dtype.element_ty
    y = normalized(values, tl.load(weight + d, inside, 0.0), D, eps, offset, OFFSET)
    if RESIDUAL:
        y = (tl.load(residual + program * D + d, inside, 0.0).to(tl.float32) + y.to(tl.float32)).to(dtype)
    tl.store(out + program * D + d, y, inside)


@triton.jit
def _layer_norm(
    x, weight, bias, out, heads, x_row, x_head, eps,
    D: tl.constexpr, D_PADDED: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    let_next_start(EARLY)
    wait_for_last(EARLY)
    program = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, D_PADDED)
    inside = d < D
    wide = tl.load(x + program // heads * x_row + program % heads * x_head + d, inside, 0.0).to(tl.float32)
    wide = tl.where(inside, wide - tl.sum(wide, 0) / D, 0.0)
    y = wide * (1 / tl.sqrt(tl.sum(wide * wide, 0) / D + eps))
    if WEIGHT:
        y = y * tl.load(weight + d, inside, 0.0).to(tl.float32)
    if BIAS:
        y = y + tl.load(bias + d, inside, 0.0).to(tl.float32)
    tl.store(out + program * D + d, y.to(out.dtype.element_ty), inside)
