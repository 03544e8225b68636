"""A short convolution between two gates: lfm2."""

from __future__ import annotations

from torch import Tensor, nn

from vllm import ops
from vllm.kv_cache.spec import State, StateTensor
from vllm.layers.linear import Linear
from vllm.layers.recurrent import CausalConv, dtype_name, states_of
from vllm.layers.step import Step


class ShortConv(nn.Module):
    """out(c · conv(b · x)), where b, c and x are made of a token.  [T, D] -> [T, D]"""

    def __init__(self, index: int, projections: tuple[Linear, Linear], conv: CausalConv) -> None:
        """`index` counts the layers that have a cache, in call order; `projections` are those to b, c and x, and out."""
        super().__init__()
        self.index = index
        self.enter, self.leave = projections
        self.conv = conv

    @property
    def cache_spec(self) -> State:
        """What memory this layer needs."""
        return State((StateTensor(self.conv.state_shape, dtype_name(self.conv.weight.dtype)),))

    def forward(self, x: Tensor, step: Step, residual: Tensor | None = None) -> Tensor:
        (before,), plan = states_of(step, self.index)
        before_gate, after_gate, y = self.enter(x).chunk(3, dim=1)
        y = self.conv(ops.multiply(before_gate, y), before, plan)
        return self.leave(ops.multiply(after_gate, y), residual)
