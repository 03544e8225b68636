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
        step, input and output weights; from the time step's rank to its channels; and out.  `decay` are A [1, N, I] and
        D [1, I].  `norms` are for the time step and the weights."""
        super().__init__()
        self.index = index
        self.enter, self.select, self.spread, self.leave = projections
        self.conv = conv
        self.a, self.skip = decay
        self.norms = nn.ModuleList(norms)
        self.activation = activation

    @property
    def cache_spec(self) -> State:
        """What memory this layer needs."""
        before = StateTensor(self.conv.state_shape, dtype_name(self.conv.weight.dtype))
        return State((before, StateTensor(tuple(self.a.value.shape), "float32")))

    def forward(self, x: Tensor, step: Step, residual: Tensor | None = None) -> Tensor:
        (before, states), plan = states_of(step, self.index)
        width = self.a.value.shape[1]
        channels, gate = self.enter(x).chunk(2, dim=1)
        channels = self.conv(channels, before, plan, self.activation)
        parts = self.select(channels).split((self.spread.matrix.shape.width, width, width), dim=1)
        rank, b, c = (norm(part) for norm, part in zip(self.norms, parts, strict=True))
        dt = self.spread(rank, dtype=torch.float32)
        inputs, steps, b, c = (part[:, None] for part in (channels, dt, b, c))
        fading = ops.Fading(self.a.value)
        y = ops.selective_scan(inputs, steps, b, c, fading, self.skip.value, memory=states, plan=plan)
        return self.leave(ops.gate(y.squeeze(1), gate, self.activation), residual)
