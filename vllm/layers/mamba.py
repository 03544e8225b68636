"""Mamba: a selective state space.  https://arxiv.org/abs/2312.00752"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vllm import ops
from vllm.kv_cache.spec import State, StateTensor
from vllm.layers.linear import Linear
from vllm.layers.recurrent import CausalConv, Exact, dtype_name, states_of
from vllm.layers.step import Step
from vllm.ops.activations import activation


class Mamba(nn.Module):
    """Every channel has a state of N elements, which a token changes by as much as it says itself.  [T, D] -> [T, D]"""

    def __init__(
        self,
        index: int,
        projections: tuple[Linear, Linear, Linear, Linear],
        conv: CausalConv,
        decay: tuple[Exact, Exact],
        norms: Sequence[nn.Module],
        activation: str,
    ) -> None:
        """`index` counts the layers that have a cache, in call order.  `projections` are those to channels and gate; to time
        step, input and output weights; from the time step's rank to its channels; and out.  `decay` are A_log [I, N] and
        D [I].  `norms` are for the time step and the weights."""
        super().__init__()
        self.index = index
        self.enter, self.select, self.spread, self.leave = projections
        self.conv = conv
        self.a_log, self.skip = decay
        self.norms = nn.ModuleList(norms)
        self.activation = activation

    @property
    def cache_spec(self) -> State:
        """What memory this layer needs."""
        channels, width = self.a_log.value.shape
        before = StateTensor(self.conv.state_shape, dtype_name(self.conv.weight.dtype))
        return State((before, StateTensor((channels, 1, width), "float32")))

    def forward(self, x: Tensor, step: Step, residual: Tensor | None = None) -> Tensor:
        (before, states), plan = states_of(step, self.index)
        width = self.a_log.value.shape[1]
        channels, gate = self.enter(x).chunk(2, dim=1)
        channels = activation(self.conv(channels, before, plan), self.activation).to(x.dtype)
        parts = self.select(channels).split((self.spread.matrix.shape.width, width, width), dim=1)
        rank, b, c = (norm(part.contiguous()) for norm, part in zip(self.norms, parts, strict=True))
        dt = ops.softplus(self.spread(rank, dtype=torch.float32))
        a = -torch.exp(self.a_log.value)
        y = ops.selective_scan(channels[..., None], dt, a, b[:, None], c[:, None], states, plan).squeeze(2)
        y = (y + channels.float() * self.skip.value) * activation(gate.float(), self.activation)
        return self.leave(y.to(x.dtype), residual)
