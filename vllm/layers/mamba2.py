"""Mamba 2: a selective state space with heads.  https://arxiv.org/abs/2405.21060"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from vllm import ops
from vllm.kv_cache.spec import State, StateTensor
from vllm.layers.linear import Linear
from vllm.layers.norm import PlainRmsNorm
from vllm.layers.placement import Placement
from vllm.layers.recurrent import CausalConv, Exact, dtype_name, states_of
from vllm.layers.step import Step
from vllm.ops.activations import activation
from vllm.weights import TensorPlace, Window


class Gate(nn.Module):
    """x · silu(gate).  [T, I] float32, [T, I] -> [T, I] float32"""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return x * activation(gate.float(), "silu")


class GatedNorm(nn.Module):
    """rms norm of x · silu(gate), group by group.  [T, I] float32, [T, I] -> [T, I] float32"""

    def __init__(self, width: int, groups: int, name: str, placement: Placement, eps: float) -> None:
        super().__init__()
        self.name = name
        self.groups = groups
        self.weight = placement.parameter(width)
        self.norm = PlainRmsNorm(width // groups, replace(placement, dtype=torch.float32), eps)

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return self.normalize(x * activation(gate.float(), "silu"))

    def normalize(self, x: Tensor) -> Tensor:
        return self.norm(x.unflatten(1, (self.groups, -1))).flatten(1) * self.weight.float()

    def windows(self) -> Iterator[Window]:
        yield Window(f"{self.name}.weight", TensorPlace(self.weight))


class NormThenGate(GatedNorm):
    """rms norm of x, group by group, · silu(gate).  [T, I] float32, [T, I] -> [T, I] float32"""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return self.normalize(x) * activation(gate.float(), "silu")


class Mamba2(nn.Module):
    """Every head has a state [P, N], which fades as a whole by as much as a token says.  [T, D] -> [T, D]"""

    def __init__(
        self,
        index: int,
        heads: tuple[int, int, int, int],
        projections: tuple[Linear, Linear],
        conv: CausalConv,
        decay: tuple[Exact, Exact, Exact],
        norm: nn.Module,
        *,
        activation: str,
        time_limits: tuple[float, float],
    ) -> None:
        """`index` counts the layers that have a cache, in call order.  `heads` is (H, P, G, N): G groups of heads share input and
        output weights.  `projections` are those to gate, channels, weights and time steps, and out.  `decay` are A_log [H], D
        [H] and what is added to the time steps [H].  `norm` turns (result, gate) into what is projected out; `time_limits` are
        what time steps are brought into."""
        super().__init__()
        self.index = index
        self.heads = heads
        self.enter, self.leave = projections
        self.conv = conv
        self.a_log, self.skip, self.dt_bias = decay
        self.norm = norm
        self.activation = activation
        self.time_limits = time_limits

    @property
    def cache_spec(self) -> State:
        """What memory this layer needs."""
        heads, head_dim, _, width = self.heads
        before = StateTensor(self.conv.state_shape, dtype_name(self.conv.weight.dtype))
        return State((before, StateTensor((heads, head_dim, width), "float32")))

    def forward(self, x: Tensor, step: Step, residual: Tensor | None = None) -> Tensor:
        (before, states), plan = states_of(step, self.index)
        heads, head_dim, groups, width = self.heads
        inner, shared = heads * head_dim, groups * width
        gate, mixed, dt = self.enter(x).split((inner, inner + 2 * shared, heads), dim=1)
        mixed = activation(self.conv(mixed, before, plan), self.activation).to(x.dtype)
        channels, b, c = mixed.split((inner, shared, shared), dim=1)
        channels, b, c = (
            part.unflatten(1, (count, -1)) for part, count in ((channels, heads), (b, groups), (c, groups))
        )
        dt = ops.softplus(dt.float() + self.dt_bias.value).clamp(*self.time_limits)
        a = -torch.exp(self.a_log.value)[:, None]
        y = ops.selective_scan(channels, dt, a, b, c, states, plan)
        y = (y + channels.float() * self.skip.value[:, None]).flatten(1)
        return self.leave(self.norm(y, gate).to(x.dtype), residual)
