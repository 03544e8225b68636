"""Recurrences on a GPU; see vllm/ops/recurrent.py.

A program takes a row of the step and some lanes of a state, which it keeps in registers, and goes through the row's tokens in
order.  What the next token needs is on its way while this one is computed.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vllm.ops.activations import CODES
from vllm.ops.attention import Form
from vllm.ops.recurrent import Fading, GateOrder
from vllm.ops.triton.activations import activate
from vllm.ops.triton.early import early, let_next_start, wait_for_last
from vllm.ops.triton.states import TritonStatePlan, leaves, row_of, softplus

_ELEMENTS = 2048
"""Of a state, that a warp keeps in registers; fewer of them where tokens follow one another, who then wait less."""
_FEW_ELEMENTS = 512
_CHANNELS = 32


def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    memory: Tensor,
    plan: TritonStatePlan,
    activation: str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Weigh each channel's last K elements, up to the token's own.  [T, C], [K, C], [C] -> [T, C]"""
    assert weight.is_contiguous() and memory.is_contiguous() and x.stride(1) == 1
    taps, channels = weight.shape
    y = torch.empty(x.shape, dtype=dtype or x.dtype, device=x.device)
    tokens, block = (1, 256) if plan.form is Form.SINGLES else (16, 64)
    _causal_conv[(plan.num_rows(len(x)), triton.cdiv(channels, block))](
        x, y, weight, weight if bias is None else bias, memory, *plan.parts, x.stride(0), channels,
        TAPS=taps, BEFORE=triton.next_power_of_2(taps - 1), TOKENS=tokens, BLOCK=block, S=plan.block_size,
        BIAS=bias is not None, KIND=CODES[activation], num_warps=4, **early(x.device),
    )  # fmt: skip
    return y


@triton.jit
def _elements(x, past, kept, at, count, TAPS: tl.constexpr, x_token, channels, c):
    """Return the elements of some channels at places of a row, before which `kept` of tokens before it are known."""
    inside = (c < channels)[None, :]
    new = tl.load(
        x + at[:, None].to(tl.int64) * x_token + c[None, :], ((at >= 0) & (at < count))[:, None] & inside, 0.0
    )
    is_old = ((at < 0) & (at >= -kept))[:, None]
    old = tl.load(past + (at + TAPS - 1)[:, None] * channels + c[None, :], is_old & inside, 0.0)
    return tl.where((at < 0)[:, None], old.to(new.dtype), new)


@triton.jit
def _causal_conv(
    x, y, weight, bias, memory, width, rows, table, max_rows, x_token, channels,
    TAPS: tl.constexpr, BEFORE: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr, S: tl.constexpr,
    BIAS: tl.constexpr, KIND: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    let_next_start(EARLY)
    wait_for_last(EARLY)
    first, start, count, blocks, reads = row_of(width, rows, table, max_rows, S)
    if count == 0:
        return
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = c < channels
    ours, kept = x + first * x_token, tl.where(reads != 0, TAPS - 1, 0)
    past = memory + reads * (TAPS - 1) * channels
    for begin in tl.range(0, count, TOKENS):
        token = begin + tl.arange(0, TOKENS)
        total = tl.zeros([TOKENS, BLOCK], tl.float32)
        for tap in tl.static_range(TAPS):
            part = _elements(ours, past, kept, token - (TAPS - 1) + tap, count, TAPS, x_token, channels, c)
            total += part.to(tl.float32) * tl.load(weight + tap * channels + c, inside, 0.0).to(tl.float32)[None, :]
        if BIAS:
            total += tl.load(bias + c, inside, 0.0).to(tl.float32)[None, :]
        target = y + (first + token)[:, None] * channels + c[None, :]
        tl.store(target, activate(total, KIND).to(y.dtype.element_ty), (token < count)[:, None] & inside[None, :])
    # the first border comes last: its block may be the one that is read
    last = (start + count - 1) // S
    k = tl.arange(0, BEFORE)
    for index in tl.range(0, last - start // S + 1):
        block = last - index
        keeps = tl.load(blocks + block).to(tl.int64)
        if keeps != 0:
            end = tl.minimum((block + 1) * S, start + count) - start
            part = _elements(ours, past, kept, end - (TAPS - 1) + k, count, TAPS, x_token, channels, c)
            tl.debug_barrier()  # everybody has read
            target = memory + (keeps * (TAPS - 1) + k)[:, None] * channels + c[None, :]
            tl.store(target, part.to(memory.dtype.element_ty), (k < TAPS - 1)[:, None] & inside[None, :])


def selective_scan(
    x: Tensor,
    dt: Tensor | None,
    b: Tensor,
    c: Tensor,
    fading: Fading,
    skip: Tensor,
    *,
    memory: Tensor,
    plan: TritonStatePlan,
) -> Tensor:
    """Let each head's state fade and take up the token, and read it.  -> [T, H, P] float32"""
    (tokens, heads, width), (groups, states) = x.shape, b.shape[1:]
    assert all(part is None or side_by_side(part) for part in (x, dt, b, c)) and memory.is_contiguous()
    y = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    padded = triton.next_power_of_2(states)
    lanes = lanes_of(padded, width, plan)
    _selective_scan[(plan.num_rows(tokens), heads * triton.cdiv(width, lanes))](
        x, x if dt is None else dt, b, c, y, fading.a, fading.a if fading.bias is None else fading.bias, skip, memory,
        *plan.parts, *(0 if part is None else part.stride(0) for part in (x, dt, b, c)), *fading.limits,
        HEADS=heads, GROUP=heads // groups, P=width, LANES=lanes, N=states, N_PADDED=padded, S=plan.block_size,
        STEPS=dt is not None, BIAS=fading.bias is not None, ALONE=fading.a.dim() == 3, SKIP_ALONE=skip.dim() == 2,
        num_warps=1, **early(x.device),
    )  # fmt: skip
    return y


def side_by_side(x: Tensor) -> bool:
    """Whether what belongs to a token lies without a gap.  [T, ...]"""
    return x[:1].is_contiguous()


def lanes_of(height: int, width: int, plan: TritonStatePlan) -> int:
    """Return how many columns of a state of so many rows, a power of 2, a program takes."""
    most = _ELEMENTS if plan.form is Form.SINGLES else _FEW_ELEMENTS
    return min(triton.next_power_of_2(width), max(8, most // height))


@triton.jit
def _selective_scan(
    x, dt, b, c, y, a, bias, skip, memory, width, rows, table, max_rows,
    x_token, dt_token, b_token, c_token, least, most,
    HEADS: tl.constexpr, GROUP: tl.constexpr, P: tl.constexpr, LANES: tl.constexpr, N: tl.constexpr,
    N_PADDED: tl.constexpr, S: tl.constexpr, STEPS: tl.constexpr, BIAS: tl.constexpr, ALONE: tl.constexpr,
    SKIP_ALONE: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """A state [N, LANES]; ALONE: its elements fade by themselves, else all at once."""
    let_next_start(EARLY)
    wait_for_last(EARLY)
    first, start, count, blocks, reads = row_of(width, rows, table, max_rows, S)
    if count == 0:
        return
    parts: tl.constexpr = (P + LANES - 1) // LANES
    head = tl.program_id(1) // parts
    lane, n = tl.program_id(1) % parts * LANES + tl.arange(0, LANES), tl.arange(0, N_PADDED)
    inside, known = lane < P, n < N
    mask = known[:, None] & inside[None, :]
    own = (head * N + n)[:, None] * P + lane[None, :]
    state = tl.load(memory + reads * (HEADS * N * P) + own, mask & (n < tl.where(reads != 0, N, 0))[:, None], 0.0)
    rates = tl.load(a + own, mask, 0.0) if ALONE else tl.load(a + head)
    drawn = tl.load(skip + head * P + lane, inside, 0.0) if SKIP_ALONE else tl.load(skip + head)
    if STEPS:
        steps = dt + first * dt_token + (head * P + lane if ALONE else head)
        offset = 0.0
        if BIAS:
            offset = tl.load(bias + head * P + lane, inside, 0.0) if ALONE else tl.load(bias + head)
        next_step = tl.load(steps, inside, 0.0) if ALONE else tl.load(steps)
    x += first * x_token + head * P + lane
    b += first * b_token + head // GROUP * N + n
    c += first * c_token + head // GROUP * N + n
    y += (first * HEADS + head) * P + lane
    next_x, next_b, next_c = tl.load(x, inside, 0.0), tl.load(b, known, 0.0), tl.load(c, known, 0.0)
    for token in tl.range(0, count):
        values, into, out = next_x.to(tl.float32), next_b.to(tl.float32), next_c.to(tl.float32)
        ahead = tl.minimum(token + 1, count - 1).to(tl.int64)
        next_x = tl.load(x + ahead * x_token, inside, 0.0)
        next_b, next_c = tl.load(b + ahead * b_token, known, 0.0), tl.load(c + ahead * c_token, known, 0.0)
        taken = values
        if STEPS:
            step = tl.minimum(tl.maximum(softplus(next_step.to(tl.float32) + offset), least), most)
            next_dt = steps + ahead * dt_token
            next_step = tl.load(next_dt, inside, 0.0) if ALONE else tl.load(next_dt)
            taken = values * step
            fade = tl.exp(step[None, :] * rates) if ALONE else tl.exp(step * rates)
        else:
            fade = tl.exp(rates)
        state = fade * state + taken[None, :] * into[:, None]
        tl.store(y, tl.sum(state * out[:, None], 0) + drawn * values, inside)
        y += HEADS * P
        block = leaves(blocks, start, count, token, S)
        if block != 0:
            tl.store(memory + block * (HEADS * N * P) + own, state, mask)


def rg_lru(x: Tensor, opening: Tensor, keeping: Tensor, rates: Tensor, memory: Tensor, plan: TritonStatePlan) -> Tensor:
    """Let each channel's state fade and take up the token, and return it.  -> [T, C] float32"""
    assert all(part.stride(1) == 1 for part in (x, opening, keeping)) and memory.is_contiguous()
    channels = x.shape[1]
    y = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    _rg_lru[(plan.num_rows(len(x)), triton.cdiv(channels, _CHANNELS))](
        x, opening, keeping, rates, y, memory, *plan.parts, x.stride(0), opening.stride(0), keeping.stride(0), channels,
        BLOCK=_CHANNELS, S=plan.block_size, num_warps=1, **early(x.device),
    )  # fmt: skip
    return y


@triton.jit
def _rg_lru(
    x, opening, keeping, rates, y, memory, width, rows, table, max_rows, x_token, opening_token, keeping_token, channels,
    BLOCK: tl.constexpr, S: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    let_next_start(EARLY)
    wait_for_last(EARLY)
    first, start, count, blocks, reads = row_of(width, rows, table, max_rows, S)
    if count == 0:
        return
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = c < channels
    state = tl.load(memory + reads * channels + c, c < tl.where(reads != 0, channels, 0), 0.0)
    rate = tl.load(rates + c, inside, 0.0)
    x += first * x_token + c
    opening += first * opening_token + c
    keeping += first * keeping_token + c
    next_x, next_open, next_keep = tl.load(x, inside, 0.0), tl.load(opening, inside, 0.0), tl.load(keeping, inside, 0.0)
    for token in tl.range(0, count):
        values, is_open, keep = next_x.to(tl.float32), next_open.to(tl.float32), next_keep.to(tl.float32)
        ahead = tl.minimum(token + 1, count - 1).to(tl.int64)
        next_x = tl.load(x + ahead * x_token, inside, 0.0)
        next_open = tl.load(opening + ahead * opening_token, inside, 0.0)
        next_keep = tl.load(keeping + ahead * keeping_token, inside, 0.0)
        fade = tl.exp(rate / (1 + tl.exp(-keep)))
        taken = values / (1 + tl.exp(-is_open))
        if (token > 0) | (reads != 0):  # a sequence's first token is taken up whole
            taken *= tl.sqrt(tl.maximum(1 - fade * fade, 0.0))
        state = fade * state + taken
        tl.store(y + (first + token) * channels + c, state, inside)
        block = leaves(blocks, start, count, token, S)
        if block != 0:
            tl.store(memory + block * channels + c, state, inside)


def gate(
    x: Tensor,
    gate: Tensor,
    activation: str,
    weight: Tensor | None = None,
    eps: float = 0.0,
    order: GateOrder = "gate_first",
) -> Tensor:
    """Multiply with activation(gate); with weights an rms norm of each group comes behind it, or before."""
    assert side_by_side(x) and side_by_side(gate)
    groups, width = x.shape[1] if x.dim() == 3 else 1, x.shape[-1]
    y = torch.empty(x.shape, dtype=gate.dtype, device=x.device)
    padded = triton.next_power_of_2(width)
    _gate[(len(x) * groups,)](
        x, gate, y if weight is None else weight, y, x.stride(0), gate.stride(0), groups, eps,
        D=width, D_PADDED=padded, NORM=weight is not None, SHARED=weight is not None and weight.dim() == 1,
        NORM_FIRST=order == "norm_first", KIND=CODES[activation], num_warps=min(max(padded // 512, 1), 16),
        **early(x.device),
    )  # fmt: skip
    return y


@triton.jit
def _gate(
    x, gate, weight, y, x_token, gate_token, groups, eps,
    D: tl.constexpr, D_PADDED: tl.constexpr, NORM: tl.constexpr, SHARED: tl.constexpr, NORM_FIRST: tl.constexpr,
    KIND: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    let_next_start(EARLY)
    wait_for_last(EARLY)
    program = tl.program_id(0).to(tl.int64)
    token, group = program // groups, program % groups
    d = tl.arange(0, D_PADDED)
    inside = d < D
    values = tl.load(x + token * x_token + group * D + d, inside, 0.0).to(tl.float32)
    opened = activate(tl.load(gate + token * gate_token + group * D + d, inside, 0.0).to(tl.float32), KIND)
    if not NORM_FIRST:
        values *= opened
    if NORM:
        size = 1 / tl.sqrt(tl.sum(tl.where(inside, values * values, 0.0), 0) / D + eps)
        values *= size * tl.load(weight + (0 if SHARED else group * D) + d, inside, 0.0).to(tl.float32)
    if NORM_FIRST:
        values *= opened
    tl.store(y + program * D + d, values.to(y.dtype.element_ty), inside)
