"""Matrices on a GPU: cuBLAS multiplies, but for a single row, whose product is a walk over the weights and nothing else."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from vllm.ops.activations import CODES
from vllm.ops.matrix import DenseMatrix
from vllm.ops.triton.activations import activate, activation, gated_activation
from vllm.ops.triton.early import early, let_next_start, wait_for_last

_STEP = 2048
"""Elements of a row of weights that a program of four warps reads at a time: on an H200 92 % of the bandwidth that a large
copy reaches, where cuBLAS has 60 to 88 %."""


class GpuMatrix(DenseMatrix):
    """One tensor.  Bias, activation and residual of a single row are part of its product."""

    def multiply(
        self,
        x: Tensor,
        *,
        activation: str | None = None,
        residual: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        if len(x) == 1:
            return multiply_row(
                x, self.weight, self.bias, gated=self.shape.gated, activation=activation, residual=residual, dtype=dtype
            )
        return multiply_rows(
            x, self.weight, self.bias, gated=self.shape.gated, activation=activation, residual=residual, dtype=dtype,
            spends_residual=self.spends_residual,
        )  # fmt: skip


def multiply_rows(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    gated: bool,
    activation: str | None,
    residual: Tensor | None,
    dtype: torch.dtype | None,
    spends_residual: bool = False,
) -> Tensor:
    """Multiply with torch's product.  [T, D], [N, D], [N] -> [T, N]"""
    if residual is not None and activation is None and bias is None:
        y = torch.addmm(residual, x, weight.t(), out=residual if spends_residual else None)  # else it is copied first
    elif residual is None and activation is None and bias is None and dtype == torch.float32 != x.dtype and x.is_cuda:
        return torch.mm(x, weight.t(), out_dtype=dtype)
    else:
        y = F.linear(x, weight, bias)
        if activation is not None:
            y = _activated(y, activation, gated)
        if residual is not None:
            y = y + residual
    return y if dtype is None else y.to(dtype)


def _activated(y: Tensor, name: str, gated: bool) -> Tensor:
    return gated_activation(y, name) if gated else activation(y, name)


def multiply_row(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    gated: bool,
    activation: str | None,
    residual: Tensor | None,
    dtype: torch.dtype | None,
) -> Tensor:
    """Multiply one row.  [1, D], [N, D], [N] -> [1, N]; half of it if gated"""
    rows = weight.shape[0] // 2 if gated else weight.shape[0]
    out = torch.empty(1, rows, dtype=dtype or x.dtype, device=x.device)
    at_once = 1 if gated else 2
    step = min(_STEP, triton.next_power_of_2(x.shape[1]))
    _multiply_row[(triton.cdiv(rows, at_once),)](
        x, weight, weight if bias is None else bias, weight if residual is None else residual, out, rows, x.shape[1],
        weight.stride(0), BIAS=bias is not None, RESIDUAL=residual is not None, GATED=gated, KIND=CODES[activation],
        WHOLE=x.shape[1] % step == 0, ROWS=at_once, STEP=step, num_warps=4, num_stages=1, **early(x.device),
    )  # fmt: skip
    return out


@triton.jit
def _multiply_row(
    x, weight, bias, residual, out, rows, width, weight_row,
    BIAS: tl.constexpr, RESIDUAL: tl.constexpr, GATED: tl.constexpr, KIND: tl.constexpr,
    WHOLE: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    let_next_start(EARLY)
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    known = n < rows
    k = tl.arange(0, STEP)
    first = weight + n.to(tl.int64)[:, None] * weight_row + k[None, :]
    second = weight + (n + rows).to(tl.int64)[:, None] * weight_row + k[None, :] if GATED else first
    mask = known[:, None] if WHOLE else known[:, None] & (k < width)[None, :]
    part = tl.load(second, mask, 0.0)
    gate_part = tl.load(first, mask, 0.0) if GATED else part
    wait_for_last(EARLY)
    sums = tl.zeros([ROWS, STEP], tl.float32)
    gate = tl.zeros([ROWS, STEP], tl.float32)
    for start in tl.range(STEP, width, STEP):  # what is read next is on its way while this is multiplied
        mask = known[:, None] if WHOLE else known[:, None] & (start + k < width)[None, :]
        next_part = tl.load(second + start, mask, 0.0)
        next_gate = tl.load(first + start, mask, 0.0) if GATED else next_part
        values = tl.load(x + start - STEP + k).to(tl.float32)[None, :]
        sums += part.to(tl.float32) * values
        if GATED:
            gate += gate_part.to(tl.float32) * values
        part, gate_part = next_part, next_gate
    last = (tl.cdiv(width, STEP) - 1) * STEP + k
    values = (tl.load(x + last) if WHOLE else tl.load(x + last, last < width, 0.0)).to(tl.float32)[None, :]
    sums += part.to(tl.float32) * values
    if GATED:
        gate += gate_part.to(tl.float32) * values
    dtype: tl.constexpr = x.dtype.element_ty
    y = tl.sum(sums, 1)
    if BIAS:
        y += tl.load(bias + (rows + n if GATED else n), known, 0.0).to(tl.float32)
    if GATED:
        z = tl.sum(gate, 1)
        if BIAS:
            z += tl.load(bias + n, known, 0.0).to(tl.float32)
        y = activate(z.to(dtype).to(tl.float32), KIND).to(dtype).to(tl.float32) * y.to(dtype).to(tl.float32)
    elif KIND != 0:
        y = activate(y.to(dtype).to(tl.float32), KIND)
    if RESIDUAL:
        y = y.to(dtype).to(tl.float32) + tl.load(residual + n, known, 0.0).to(tl.float32)
    tl.store(out + n, y.to(out.dtype.element_ty), known)
