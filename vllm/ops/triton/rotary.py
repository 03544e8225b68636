"""Rotary position embedding in place, one program per token."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


def rotary(
    q: Tensor, k: Tensor, cos_sin: Tensor, positions: Tensor, interleaved: bool = False
) -> tuple[Tensor, Tensor]:
    """Rotate the first `rotary_dim` elements of each head, in place.  [T, H, E], [T, G, E], [P, rotary_dim], [T] -> q, k"""
    half = cos_sin.shape[1] // 2
    for x in (q, k):
        heads = x.shape[1]
        block = min(triton.next_power_of_2(heads), 16)
        _rotary[(x.shape[0], triton.cdiv(heads, block))](
            x, cos_sin, positions, heads, *x.stride()[:2], cos_sin.stride(0),
            HALF=half, HALF_PADDED=triton.next_power_of_2(half), HEADS=block, INTERLEAVED=interleaved, num_warps=2,
        )  # fmt: skip
    return q, k


@triton.jit
def _rotary(
    x, cos_sin, positions, heads, x_token, x_head, table_row,
    HALF: tl.constexpr, HALF_PADDED: tl.constexpr, HEADS: tl.constexpr, INTERLEAVED: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    position = tl.load(positions + token).to(tl.int64)
    pair = tl.arange(0, HALF_PADDED)[None, :]
    inside = pair < HALF
    dtype: tl.constexpr = x.dtype.element_ty
    cos = tl.load(cos_sin + position * table_row + pair, inside, 0.0).to(dtype).to(tl.float32)
    sin = tl.load(cos_sin + position * table_row + HALF + pair, inside, 0.0).to(dtype).to(tl.float32)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    mask = (head < heads) & inside
    if INTERLEAVED:
        first = x + token * x_token + head * x_head + 2 * pair
        second = first + 1
    else:
        first = x + token * x_token + head * x_head + pair
        second = first + HALF
    a = tl.load(first, mask, 0.0).to(tl.float32)
    b = tl.load(second, mask, 0.0).to(tl.float32)
    tl.store(first, (a * cos - b * sin).to(dtype), mask)
    tl.store(second, (b * cos + a * sin).to(dtype), mask)
