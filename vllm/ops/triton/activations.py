"""Activations, alone or gated, computed in float32."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vllm.ops.activations import CODES
from vllm.ops.triton.early import early, let_next_start, wait_for_last

_BLOCK = 1024
_SILU, _GELU, _GELU_TANH, _QUICK_GELU, _RELU, _RELU2, _SIGMOID, _TANH = (tl.constexpr(code) for code in range(1, 9))


def gated_activation(x: Tensor, name: str) -> Tensor:
    """Split the last dimension into gate and up; return activation(gate) · up.  [T, 2 I] -> [T, I]"""
    width = x.shape[-1] // 2
    out = torch.empty(*x.shape[:-1], width, dtype=x.dtype, device=x.device)
    _activate[(x.shape[0], triton.cdiv(width, _BLOCK))](
        x, out, x.stride(0), width, KIND=CODES[name], GATED=True, BLOCK=_BLOCK, num_warps=4, **early(x.device)
    )
    return out


def activation(x: Tensor, name: str) -> Tensor:
    """Apply the activation called `name` to each element.  [T, I] -> [T, I]"""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _activate[(x.shape[0], triton.cdiv(x.shape[1], _BLOCK))](
        x, out, x.stride(0), x.shape[1], KIND=CODES[name], GATED=False, BLOCK=_BLOCK, num_warps=4, **early(x.device)
    )
    return out


@triton.jit
def activate(x, KIND: tl.constexpr):
    """Apply the activation of a code (`ops.activations.CODES`) to float32 values."""
    if KIND == _SILU:
        return x / (1 + tl.exp(-x))
    if KIND == _GELU:
        return x * 0.5 * (1 + tl.erf(x * 0.7071067811865476))
    if KIND == _GELU_TANH:
        return x * (1 - 1 / (tl.exp(2 * 0.7978845608028654 * (x + 0.044715 * x * x * x)) + 1))
    if KIND == _QUICK_GELU:
        return x / (1 + tl.exp(-1.702 * x))
    if KIND == _RELU:
        return tl.maximum(x, 0.0)
    if KIND == _RELU2:
        return tl.maximum(x, 0.0) * tl.maximum(x, 0.0)
    if KIND == _SIGMOID:
        return 1 / (1 + tl.exp(-x))
    if KIND == _TANH:
        return 1 - 2 / (tl.exp(2 * x) + 1)
    return x


@triton.jit
def _activate(x, out, x_row, width, KIND: tl.constexpr, GATED: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    let_next_start(EARLY)
    wait_for_last(EARLY)
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = i < width
    dtype: tl.constexpr = out.dtype.element_ty
    y = activate(tl.load(x + row * x_row + i, inside, 0.0).to(tl.float32), KIND).to(dtype)
    if GATED:
        up = tl.load(x + row * x_row + width + i, inside, 0.0)
        y = (y.to(tl.float32) * up.to(tl.float32)).to(dtype)
    tl.store(out + row * width + i, y, inside)
