"""Recurrences with the native kernels; see vllm/ops/recurrent.py.

They find a step's rows and states through the plan's address, so that they can be recorded.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vllm.ops import recurrent as reference
from vllm.ops.activations import CODES
from vllm.ops.memory import empty
from vllm.ops.native import TYPES, address, library
from vllm.ops.recurrent import Fading, GateOrder
from vllm.ops.states import StatePlan


def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    memory: Tensor,
    plan: StatePlan,
    activation: str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Weigh each channel's last K elements, up to the token's own.  [T, C], [K, C], [C] -> [T, C]"""
    assert x.dtype == weight.dtype == memory.dtype and weight.is_contiguous() and memory.is_contiguous()
    kernel, channels = weight.shape
    y = empty(*x.shape, dtype=dtype or x.dtype)
    addresses = (address(x), address(y), address(weight), address(bias), address(memory), plan.address)
    sizes = (x.stride(0), y.stride(0), channels, kernel)
    library().causal_conv(len(x), *addresses, *sizes, CODES[activation], TYPES[x.dtype], TYPES[y.dtype])
    return y


def selective_scan(
    x: Tensor, dt: Tensor | None, b: Tensor, c: Tensor, fading: Fading, skip: Tensor, *, memory: Tensor, plan: StatePlan
) -> Tensor:
    """Let each head's state fade and take up the token, and read it.  -> [T, H, P] float32"""
    (tokens, heads, width), (groups, states) = x.shape, b.shape[1:]
    assert x.dtype == b.dtype == c.dtype and all(_side_by_side(part) for part in (x, b, c))
    assert memory.dtype == torch.float32 and memory.is_contiguous() and fading.a.is_contiguous()
    assert dt is None or _side_by_side(dt)
    y = empty(tokens, heads, width, dtype=torch.float32)
    library().selective_scan(
        tokens,
        *map(address, (x, dt, b, c, y, fading.a, fading.bias, skip, memory)),
        plan.address,
        *(0 if part is None else part.stride(0) for part in (x, dt, b, c)),
        heads,
        width,
        groups,
        states,
        *fading.limits,
        int(fading.a.dim() == 3),
        int(skip.dim() == 2),
        TYPES[x.dtype],
        TYPES[x.dtype if dt is None else dt.dtype],
    )
    return y


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
    """Let each head's state fade, move what it has for a key towards a value, and read it.  -> [T, Hv, V] float32"""
    inputs = (q, k, v, dt, beta)
    assert all(x.dtype == torch.float32 and _side_by_side(x) for x in inputs) and memory.is_contiguous()
    (tokens, heads, width), (key_heads, key_width) = v.shape, k.shape[1:]
    y = empty(tokens, heads, width, dtype=torch.float32)
    library().gated_delta(
        tokens,
        *map(address, (*inputs, fading.a, fading.bias, y, memory)),
        plan.address,
        *(x.stride(0) for x in inputs),
        key_heads,
        key_width,
        heads,
        width,
        strength,
        int(dt.dim() == 3),
    )
    return y


def rg_lru(x: Tensor, opening: Tensor, keeping: Tensor, rates: Tensor, memory: Tensor, plan: StatePlan) -> Tensor:
    """Let each channel's state fade and take up the token, and return it.  -> [T, C] float32"""
    assert x.dtype == opening.dtype == keeping.dtype and memory.is_contiguous()
    y = empty(*x.shape, dtype=torch.float32)
    addresses = (*map(address, (x, opening, keeping, y, rates, memory)), plan.address)
    library().rg_lru(len(x), *addresses, x.stride(0), opening.stride(0), keeping.stride(0), x.shape[1], TYPES[x.dtype])
    return y


def gate(
    x: Tensor,
    gate: Tensor,
    activation: str,
    weight: Tensor | None = None,
    eps: float = 0.0,
    order: GateOrder = "gate_first",
) -> Tensor:
    """Multiply with activation(gate); with weights an rms norm of each group comes behind it, or before."""
    if gate.dtype not in TYPES:  # x may be one for kernels all the same
        return reference.gate(x, gate, activation, weight, eps, order)
    assert _side_by_side(x) and _side_by_side(gate) and x.dtype in {torch.float32, gate.dtype}
    groups = x.shape[1] if x.dim() == 3 else 1
    y = empty(*x.shape, dtype=gate.dtype)
    library().gate(
        len(x),
        *map(address, (x, gate, y, weight)),
        *(part.stride(0) for part in (x, gate, y)),
        groups,
        x.shape[-1],
        eps,
        CODES[activation],
        int(order == "norm_first"),
        int(weight is not None and weight.dim() == 1),
        TYPES[x.dtype],
        TYPES[gate.dtype],
    )
    return y


def _side_by_side(x: Tensor) -> bool:
    """Whether what belongs to a token lies without a gap.  [T, ...]"""
    return x[:1].is_contiguous()
