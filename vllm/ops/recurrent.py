"""Recurrences over the tokens of each row, in plain torch.

Whatever adds up is made of products and sums of single elements in a fixed order, so a token's result has the same bits
however its row was cut into steps, and whichever rows are beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vllm.kv_cache.spec import NULL_BLOCK
from vllm.ops.activations import activation as activate
from vllm.ops.norms import rms_norm
from vllm.ops.states import Run, StatePlan

_PART = 1 << 20
"""Elements of the states that are held at a time while a run is gone through, at least one token's."""


@dataclass(frozen=True, slots=True)
class Fading:
    """How states fade: by exp(step · a), where step is softplus(what a token says + bias) between two limits.  All float32."""

    a: Tensor
    """[H], or [H, N, P] where each element has its own; negative"""
    bias: Tensor | None = None
    """Of the shape of a token's"""
    limits: tuple[float, float] = (0.0, float("inf"))

    def steps(self, dt: Tensor) -> Tensor:
        """Return the time steps.  float32, same shape"""
        dt = dt.float()
        return softplus(dt if self.bias is None else dt + self.bias).clamp(*self.limits)


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), which is x where exp(x) is large.  float32, same shape"""
    return torch.where(x > 20.0, x, torch.log1p(torch.exp(x.clamp(max=20.0))))


def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    memory: Tensor,
    plan: StatePlan,
    activation: str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Weigh each channel's last K elements, up to the token's own.  [T, C], [K, C], [C] -> [T, C]

    `memory` [num_blocks, K - 1, C] keeps the elements before.  `dtype` is the result's, by default that of x.
    """
    out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    taps = weight.float()
    for run in plan.runs:
        count = len(run.tokens)
        past = torch.cat((run.begin(memory).transpose(0, 1).to(x.dtype), x[run.tokens]))  # [K - 1 + n, r, C]
        y = past[:count].float() * taps[0]
        for shift, tap in enumerate(taps[1:], 1):
            y += past[shift : shift + count].float() * tap
        out[run.tokens] = y if bias is None else y + bias.float()
        for token in run.leaves:
            run.leave(memory, token, past[token + 1 : token + len(taps)].transpose(0, 1))
    return (out if activation is None else activate(out, activation)).to(dtype or x.dtype)


def selective_scan(
    x: Tensor, dt: Tensor | None, b: Tensor, c: Tensor, fading: Fading, skip: Tensor, *, memory: Tensor, plan: StatePlan
) -> Tensor:
    """Let each head's state fade and take up the token, and read it.  -> [T, H, P] float32

        state = exp(step · a) · state + step · b xᵀ        [N, P]
        y     = cᵀ state + skip · x                        [P]

    x [T, H, P]; dt [T, H], or [T, H, P] where `fading` has `a` for each element, or None: steps are 1; b, c [T, G, N], shared by the heads of a
    group; skip [H] or [H, P] float32.  `memory` [num_blocks, H, N, P] keeps the states.
    https://arxiv.org/abs/2312.00752, https://arxiv.org/abs/2405.21060
    """
    groups = b.shape[1]
    out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    steps = torch.ones(x.shape[:2], device=x.device) if dt is None else fading.steps(dt)
    if steps.dim() == 2:
        steps = steps[..., None]  # [T, H, 1]
    rates = (fading.a if fading.a.dim() == 3 else fading.a[:, None, None]).unflatten(0, (groups, -1))
    for run in plan.runs:
        state = run.begin(memory).float().unflatten(1, (groups, -1))  # [r, G, H / G, N, P]
        for first, tokens in _parts(run, state.numel()):
            step = steps[tokens].unflatten(2, (groups, -1))[..., None, :]  # [m, r, G, H / G, 1, P or 1]
            inputs = x[tokens].float().unflatten(2, (groups, -1))[..., None, :] * step
            fade = torch.exp(step * rates)
            states = inputs * b[tokens].float()[:, :, :, None, :, None]
            for token in range(len(tokens)):
                state = states[token].add_(fade[token] * state)
                run.leave(memory, first + token, state.flatten(1, 2))
            out[tokens] = fold((states * c[tokens].float()[:, :, :, None, :, None]).transpose(-1, -2)).flatten(2, 3)
    return out + x.float() * (skip if skip.dim() == 2 else skip[:, None])


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
    plan: StatePlan,
) -> Tensor:
    """Let each head's state fade, move what it has for a key towards a value, and read it.  -> [T, Hv, V] float32

        state = exp(step · a) · state
        state = state + strength · sigmoid(beta) · k (v - kᵀ state)ᵀ        [K, V]
        y     = qᵀ state                                                    [V]

    q, k [T, Hk, K], brought to length 1 (and q divided by √K), shared by the value heads of a group; v [T, Hv, V]; dt
    [T, Hv], or [T, Hv, K] where each element of a key fades by itself; beta [T, Hv]; all float32.  `memory`
    [num_blocks, Hv, K, V] keeps the states.  https://arxiv.org/abs/2412.06464, https://arxiv.org/abs/2510.26692
    """
    groups, width = k.shape[1:]
    q, k = _unit(q) * width**-0.5, _unit(k)
    rates = fading.a if dt.dim() == 2 else fading.a[:, None]
    decay = torch.exp(rates * fading.steps(dt)).reshape(*dt.shape[:2], -1, 1)  # [T, Hv, 1 or K, 1]
    beta = activate(beta, "sigmoid") * strength
    out = torch.empty(v.shape, dtype=torch.float32, device=v.device)
    for run in plan.runs:
        state = run.begin(memory).float().unflatten(1, (groups, -1))  # [r, Hk, Hv / Hk, K, V]
        for first, tokens in _parts(run, state.numel()):
            values, fade, part_corrected = (
                part[tokens].unflatten(2, (groups, -1)) for part in (v, decay, beta[..., None])
            )
            keys, queries = k[tokens][:, :, :, None, :, None], q[tokens][:, :, :, None, :, None]
            states = torch.empty(len(tokens), *state.shape, dtype=torch.float32, device=v.device)
            for token in range(len(tokens)):
                state = fade[token] * state
                known = fold((state * keys[token]).transpose(-1, -2))
                change = (values[token] - known) * part_corrected[token]
                states[token] = state = state.add_(keys[token] * change[..., None, :])
                run.leave(memory, first + token, state.flatten(1, 2))
            out[tokens] = fold((states * queries).transpose(-1, -2)).flatten(2, 3)
    return out


def rg_lru(x: Tensor, opening: Tensor, keeping: Tensor, rates: Tensor, memory: Tensor, plan: StatePlan) -> Tensor:
    """Let each channel's state fade and take up the token, and return it.  -> [T, C] float32

        fade  = exp(rates · sigmoid(keeping))
        state = fade · state + √(1 - fade²) · sigmoid(opening) · x        without the root for a sequence's first token

    x, opening, keeping [T, C]; rates [C] float32, negative.  `memory` [num_blocks, C] keeps the states.
    https://arxiv.org/abs/2402.19427
    """
    out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    fades = torch.exp(rates * activate(keeping.float(), "sigmoid"))
    inputs = x.float() * activate(opening.float(), "sigmoid")
    damped = inputs * torch.sqrt((1 - fades * fades).clamp(min=0))
    for run in plan.runs:
        state = run.begin(memory).float()  # [r, C]
        begins = (run.reads == NULL_BLOCK)[:, None]
        for token, at in enumerate(run.tokens):
            taken = damped[at] if token else torch.where(begins, inputs[at], damped[at])
            out[at] = state = fades[at] * state + taken
            run.leave(memory, token, state)
    return out


GateOrder = Literal["gate_first", "norm_first"]


def gate(
    x: Tensor,
    gate: Tensor,
    activation: str,
    weight: Tensor | None = None,
    eps: float = 0.0,
    order: GateOrder = "gate_first",
) -> Tensor:
    """Multiply with activation(gate); with weights an rms norm of each group comes behind it, or before.

    [T, G, E] or [T, D], the same of the dtype of the result, [G, E] or [E] -> same shape
    """
    opened = activate(gate.float(), activation)
    if weight is None:
        return (x.float() * opened).to(gate.dtype)
    if order == "norm_first":
        return (_normalized(x.float(), weight, eps) * opened).to(gate.dtype)
    return _normalized(x.float() * opened, weight, eps).to(gate.dtype)


def _normalized(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return rms_norm(x, torch.ones_like(weight[0] if weight.dim() > 1 else weight, dtype=x.dtype), eps) * weight.float()


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
