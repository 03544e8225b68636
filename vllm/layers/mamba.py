"""Mamba: a selective state space.  https://arxiv.org/abs/2312.00752"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vllm import ops
from vllm.kv_cache.spec import State, StateTensor
from vllm.layers.linear import Linear
from vllm.layers.recurrent import CausalConv, Exact, dtype_name, states_of
from vllm.layers.step import Step


class Mamba(nn.Module):
    """Every channel has a state of N elements, which a token changes by as much as it says itself.  [T, D] -> [T, D]"""

    def __init__(
        self,
        index: int,
        state: tuple[int, int, int],
        projections: tuple[Linear, Linear, Linear, Linear],
        conv: CausalConv,
        decay: tuple[Exact, Exact],
        norms: Sequence[nn.Module],
        activation: str,
    ) -> None:
        """`index` counts the layers that have a cache, in call order.  `state` is its shape (1, N, I).  `projections` are those
        to channels and gate; to time step, input and output weights; from the time step's rank to its channels; and out.
        `decay` are A [1, N, I] and D [1, I].  `norms` are for the time step and the weights."""
        super().__init__()
        self.index = index
        self.state = state
        self.enter, self.select, self.spread, self.leave = projections
        self.conv = conv
        self.a, self.skip = decay
        self.norms = nn.ModuleList(norms)
        self.activation = activation

    @property
    def cache_spec(self) -> State:
        """What memory this layer needs."""
        before = StateTensor(self.conv.state_shape, dtype_name(self.conv.weight.dtype))
        return State((before, StateTensor(self.state, "float32")))

    def forward(self, x: Tensor, step: Step, residual: Tensor | None = None) -> Tensor:
        (before, states), plan = states_of(step, self.index)
        rank, width = self.spread.matrix.shape.width, self.state[1]
        channels, gate = self.enter(x).chunk(2, dim=1)
        channels = self.conv(channels, before, plan, self.activation)
        parts = self.select(channels).split((rank, width, width), dim=1)
        narrow, b, c = (norm(part) for norm, part in zip(self.norms, parts, strict=True))
        dt = self.spread(narrow, dtype=torch.float32)
        x, dt, fading = self.scanned(channels, dt)
        y = ops.selective_scan(x, dt, b[:, None], c[:, None], fading, self.skip.value, memory=states, plan=plan)
        return self.leave(ops.gate(y.flatten(1), gate, self.activation), residual)

    def scanned(self, channels: Tensor, dt: Tensor) -> tuple[Tensor, Tensor, ops.Fading]:
        """Return channels and time steps as they are scanned, and how states fade.  [T, I], [T, I] -> [T, 1, I], [T, 1, I]"""
        return channels[:, None], dt[:, None], ops.Fading(self.a.value)


class HeadMamba(Mamba):
    """The same with a time step for each of H heads, whose elements fade alike: plamo 2.  [T, D] -> [T, D]"""

    def __init__(self, dt_bias: Exact, *args: Any) -> None:
        """`dt_bias` [H] is added to the time steps; the rest as above, with a state (H, N, P), A [H] and D [H]."""
        super().__init__(*args)
        self.dt_bias = dt_bias

    def scanned(self, channels: Tensor, dt: Tensor) -> tuple[Tensor, Tensor, ops.Fading]:
        """Return the same: [T, I], [T, H] -> [T, H, P], [T, H]"""
        heads = channels.unflatten(1, (self.state[0], self.state[2]))
        return heads, dt, ops.Fading(self.a.value, self.dt_bias.value)
