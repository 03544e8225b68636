"""Recurrences over the tokens of each row, in plain torch.

Whatever adds up is made of products and sums of single elements in a fixed order, so a token's result has the same bits
however its row was cut into steps, and whichever rows are beside it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from vllm.ops.states import Run, StatePlan

_PART = 1 << 20
"""Elements of the states that are held at a time while a run is gone through, at least one token's."""


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), which is x where exp(x) is large.  float32, same shape"""
    return torch.where(x > 20.0, x, torch.log1p(torch.exp(x.clamp(max=20.0))))


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor | None, memory: Tensor, plan: StatePlan) -> Tensor:
    """Weigh each channel's last K elements, up to the token's own.  [T, C], [C, K], [C] -> [T, C] float32

    `memory` [num_blocks, K - 1, C] keeps the elements before.
    """
    out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    taps = weight.float().unbind(1)
    for run in plan.runs:
        count = len(run.tokens)
        past = torch.cat((run.begin(memory).transpose(0, 1).to(x.dtype), x[run.tokens]))  # [K - 1 + n, r, C]
        y = past[:count].float() * taps[0]
        for shift, tap in enumerate(taps[1:], 1):
            y += past[shift : shift + count].float() * tap
        out[run.tokens] = y if bias is None else y + bias.float()
        for token in run.leaves:
            run.leave(memory, token, past[token + 1 : token + len(taps)].transpose(0, 1))
    return out


def selective_scan(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, memory: Tensor, plan: StatePlan) -> Tensor:
    """Let each head's state fade and take up the token, and read it.  -> [T, H, P] float32

        state = exp(dt · a) · state + dt · x bᵀ        [P, N]
        y     = state c                                [P]

    x [T, H, P]; dt [T, H] float32; a [H, N] or [H, 1] float32; b, c [T, G, N], shared by the heads of a group.  `memory`
    [num_blocks, H, P, N] keeps the states.  https://arxiv.org/abs/2312.00752, https://arxiv.org/abs/2405.21060
    """
    groups = b.shape[1]
    out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    fades = a.unflatten(0, (groups, -1)).unsqueeze(-2)  # [G, H / G, 1, N]
    for run in plan.runs:
        state = run.begin(memory).float().unflatten(1, (groups, -1))  # [r, G, H / G, P, N]
        for first, tokens in _parts(run, state.numel()):
            step = dt[tokens].unflatten(2, (groups, -1))[..., None]  # [m, r, G, H / G, 1]
            inputs = x[tokens].float().unflatten(2, (groups, -1)) * step
            fade = torch.exp(step[..., None] * fades)
            states = inputs[..., None] * b[tokens].float()[:, :, :, None, None]
            for token in range(len(tokens)):
                state = states[token].add_(fade[token] * state)
                run.leave(memory, first + token, state.flatten(1, 2))
            out[tokens] = fold(states * c[tokens].float()[:, :, :, None, None]).flatten(2, 3)
    return out


def gated_delta(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, memory: Tensor, plan: StatePlan
) -> Tensor:
    """Let each head's state fade, move what it has for a key towards a value, and read it.  -> [T, Hv, V] float32

        state = decay · state
        state = state + beta · (v - state k) kᵀ        [V, K]
        y     = state q                                [V]

    q, k [T, Hk, K] float32, brought to length 1 (and q divided by √K), shared by the value heads of a group; v [T, Hv, V];
    decay, beta [T, Hv].  `memory` [num_blocks, Hv, V, K] keeps the states.  https://arxiv.org/abs/2412.06464
    """
    groups, width = k.shape[1:]
    q, k = _unit(q) * width**-0.5, _unit(k)
    out = torch.empty(v.shape, dtype=torch.float32, device=v.device)
    for run in plan.runs:
        state = run.begin(memory).float().unflatten(1, (groups, -1))  # [r, Hk, Hv / Hk, V, K]
        for first, tokens in _parts(run, state.numel()):
            values, fade, strength = (
                part[tokens].unflatten(2, (groups, -1)) for part in (v, decay[..., None, None], beta[..., None])
            )
            keys, queries = k[tokens][:, :, :, None, None], q[tokens][:, :, :, None, None]
            states = torch.empty(len(tokens), *state.shape, dtype=torch.float32, device=v.device)
            for token in range(len(tokens)):
                state = fade[token] * state
                change = (values[token] - fold(state * keys[token])) * strength[token]
                states[token] = state = state.add_(change[..., None] * keys[token])
                run.leave(memory, first + token, state.flatten(1, 2))
            out[tokens] = fold(states * queries).flatten(2, 3)
    return out


def _unit(x: Tensor) -> Tensor:
    """Bring vectors to length 1.  [..., K] -> [..., K]"""
    return x * torch.rsqrt(fold(x * x)[..., None] + 1e-6)


def fold(x: Tensor) -> Tensor:
    """Add up the last dimension, half onto half.  [..., N] -> [...]"""
    while (width := x.shape[-1]) > 1:
        half = width // 2
        folded = x[..., :half] + x[..., half : 2 * half]
        x = torch.cat((folded, x[..., 2 * half :]), -1) if width % 2 else folded
    return x[..., 0]


def _parts(run: Run, size: int) -> Iterator[tuple[int, Tensor]]:
    """Yield the tokens of a run, a few at a time, with the first one's place in it; `size` are the elements of its states."""
    count = max(1, _PART // size)
    for first in range(0, len(run.tokens), count):
        yield first, run.tokens[first : first + count]
