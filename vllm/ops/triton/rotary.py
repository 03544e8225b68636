"""Rotary position embedding in place, some heads of a token per program."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from vllm.ops.triton.early import early, let_next_start, wait_for_last

_HEADS = 8
"""Heads per program."""


def rotary(
    q: Tensor, k: Tensor, cos_sin: Tensor, positions: Tensor, interleaved: bool = False
) -> tuple[Tensor, Tensor]:
    """Rotate the first `rotary_dim` elements of each head, in place.  [T, H, E], [T, G, E], [P, rotary_dim], [T] -> q, k"""
    half = cos_sin.shape[1] // 2
    blocks = [triton.cdiv(x.shape[1], _HEADS) for x in (q, k)]
    _rotary[(q.shape[0], sum(blocks))](
        q, k, cos_sin, positions, blocks[0], q.shape[1], k.shape[1], *q.stride()[:2], *k.stride()[:2], cos_sin.stride(0),
        HALF=half, HALF_PADDED=triton.next_power_of_2(half), HEADS=_HEADS, INTERLEAVED=interleaved, num_warps=2,
        **early(q.device),
    )  # fmt: skip
    return q, k


@triton.jit
def _rotary(
    q, k, cos_sin, positions, q_blocks, q_heads, k_heads, q_token, q_head, k_token, k_head, table_row,
    HALF: tl.constexpr, HALF_PADDED: tl.constexpr, HEADS: tl.constexpr, INTERLEAVED: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    let_next_start(EARLY)
    wait_for_last(EARLY)
    token = tl.program_id(0).to(tl.int64)
    if tl.program_id(1) < q_blocks:
        head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
        x, heads = q + token * q_token + head * q_head, q_heads
    else:
        head = (tl.program_id(1) - q_blocks) * HEADS + tl.arange(0, HEADS)[:, None]
        x, heads = k + token * k_token + head * k_head, k_heads
    position = tl.load(positions + token).to(tl.int64)
    pair = tl.arange(0, HALF_PADDED)[None, :]
    inside = pair < HALF
    dtype: tl.constexpr = q.dtype.element_ty
    cos = tl.load(cos_sin + position * table_row + pair, inside, 0.0).to(dtype).to(tl.float32)
    sin = tl.load(cos_sin + position * table_row + HALF + pair, inside, 0.0).to(dtype).to(tl.float32)
    mask = (head < heads) & inside
    if INTERLEAVED:
        first = x + 2 * pair
        second = first + 1
    else:
        first = x + pair
        second = first + HALF
    a = tl.load(first, mask, 0.0).to(tl.float32)
    b = tl.load(second, mask, 0.0).to(tl.float32)
    tl.store(first, (a * cos - b * sin).to(dtype), mask)
    tl.store(second, (b * cos + a * sin).to(dtype), mask)
