"""Gated delta rules on a GPU; see vllm/ops/recurrent.py, and recurrent.py beside this for how the work is shared."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vllm.ops.recurrent import Fading
from vllm.ops.triton.early import early, let_next_start, wait_for_last
from vllm.ops.triton.recurrent import lanes_of, side_by_side
from vllm.ops.triton.states import TritonStatePlan, leaves, row_of, softplus


def gated_delta(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dt: Tensor,
    beta: Tensor,
    fading: Fading,
    strength: float = 1.0,
    *,
    memory: Tensor,
    plan: TritonStatePlan,
) -> Tensor:
    """Let each head's state fade, move what it has for a key towards a value, and read it.  -> [T, Hv, V] float32"""
    assert all(side_by_side(part) for part in (q, k, v, dt, beta)) and memory.is_contiguous()
    (tokens, heads, width), (key_heads, key_width) = v.shape, k.shape[1:]
    y = torch.empty(v.shape, dtype=torch.float32, device=v.device)
    padded = triton.next_power_of_2(key_width)
    lanes = lanes_of(padded, width, plan)
    _gated_delta[(plan.num_rows(tokens), heads * triton.cdiv(width, lanes))](
        q, k, v, dt, beta, y, fading.a, fading.a if fading.bias is None else fading.bias, memory, *plan.parts,
        *(part.stride(0) for part in (q, k, v, dt, beta)), *fading.limits, strength, key_width**-0.5,
        HEADS=heads, GROUP=heads // key_heads, V=width, LANES=lanes, K=key_width, K_PADDED=padded, S=plan.block_size,
        BIAS=fading.bias is not None, ALONE=dt.dim() == 3, num_warps=1, **early(v.device),
    )  # fmt: skip
    return y


@triton.jit
def _gated_delta(
    q, k, v, dt, beta, y, a, bias, memory, width, rows, table, max_rows, q_token, k_token, v_token, dt_token, beta_token,
    least, most, strength, scale,
    HEADS: tl.constexpr, GROUP: tl.constexpr, V: tl.constexpr, LANES: tl.constexpr, K: tl.constexpr,
    K_PADDED: tl.constexpr, S: tl.constexpr, BIAS: tl.constexpr, ALONE: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """A state [K, LANES]; ALONE: its rows fade by themselves, else all at once."""
    let_next_start(EARLY)
    wait_for_last(EARLY)
    first, start, count, blocks, reads = row_of(width, rows, table, max_rows, S)
    if count == 0:
        return
    parts: tl.constexpr = (V + LANES - 1) // LANES
    head = tl.program_id(1) // parts
    lane, e = tl.program_id(1) % parts * LANES + tl.arange(0, LANES), tl.arange(0, K_PADDED)
    inside, known = lane < V, e < K
    mask = known[:, None] & inside[None, :]
    own = (head * K + e)[:, None] * V + lane[None, :]
    state = tl.load(memory + reads * (HEADS * K * V) + own, mask & (e < tl.where(reads != 0, K, 0))[:, None], 0.0)
    rate = tl.load(a + head)
    offset = 0.0
    if BIAS:
        offset = tl.load(bias + head * K + e, known, 0.0) if ALONE else tl.load(bias + head)
    q += first * q_token + head // GROUP * K + e
    k += first * k_token + head // GROUP * K + e
    v += first * v_token + head * V + lane
    dt += first * dt_token + (head * K + e if ALONE else head)
    beta += first * beta_token + head
    y += (first * HEADS + head) * V + lane
    next_q, next_k, next_v = tl.load(q, known, 0.0), tl.load(k, known, 0.0), tl.load(v, inside, 0.0)
    next_dt, next_beta = tl.load(dt, known, 0.0) if ALONE else tl.load(dt), tl.load(beta)
    for token in tl.range(0, count):
        query, key, value = next_q * (scale * _length(next_q)), next_k * _length(next_k), next_v
        fade = tl.exp(rate * tl.minimum(tl.maximum(softplus(next_dt + offset), least), most))
        part = strength / (1 + tl.exp(-next_beta))
        ahead = tl.minimum(token + 1, count - 1).to(tl.int64)
        next_q, next_k = tl.load(q + ahead * q_token, known, 0.0), tl.load(k + ahead * k_token, known, 0.0)
        next_v, next_beta = tl.load(v + ahead * v_token, inside, 0.0), tl.load(beta + ahead * beta_token)
        next_dt = tl.load(dt + ahead * dt_token, known, 0.0) if ALONE else tl.load(dt + ahead * dt_token)
        state = state * (fade[:, None] if ALONE else fade)
        change = (value - tl.sum(state * key[:, None], 0)) * part
        state += key[:, None] * change[None, :]
        tl.store(y, tl.sum(state * query[:, None], 0), inside)
        y += HEADS * V
        block = leaves(blocks, start, count, token, S)
        if block != 0:
            tl.store(memory + block * (HEADS * K * V) + own, state, mask)


@triton.jit
def _length(x):
    """Return what brings a vector to length 1."""
    return 1 / tl.sqrt(tl.sum(x * x, 0) + 1e-6)
