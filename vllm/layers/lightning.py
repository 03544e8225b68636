"""Lightning attention: linear attention whose memory fades by as much as a head always does.  https://arxiv.org/abs/2401.04658"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vllm import ops
from vllm.kv_cache.spec import State, StateTensor
from vllm.layers.linear import Linear
from vllm.layers.norm import RmsNorm
from vllm.layers.recurrent import states_of
from vllm.layers.step import Step


class LightningAttention(nn.Module):
    """Every head has a state [E, E], the sum of k vᵀ of all tokens, those long ago faded, which q reads.  [T, D] -> [T, D]"""

    rates: Tensor
    nothing: Tensor

    def __init__(
        self, index: int, projections: tuple[Linear, Linear, Linear], rates: Tensor, head_dim: int, norm: RmsNorm
    ) -> None:
        """`index` counts the layers that have a cache, in call order.  `projections` are those to q, k and v with an
        activation, to the gate, and out; `rates` [H] float32 are the logarithms of what is left after a token."""
        super().__init__()
        self.index = index
        self.enter, self.gate, self.leave = projections
        self.head_dim = head_dim
        self.norm = norm
        self.register_buffer("rates", rates, persistent=False)
        self.register_buffer("nothing", torch.zeros_like(rates), persistent=False)

    @property
    def cache_spec(self) -> State:
        """What memory this layer needs."""
        return State((StateTensor((len(self.rates), self.head_dim, self.head_dim), "float32"),))

    def forward(self, x: Tensor, step: Step, residual: Tensor | None = None) -> Tensor:
        (states,), plan = states_of(step, self.index)
        q, k, v = (part.unflatten(1, (-1, self.head_dim)) for part in self.enter(x).chunk(3, dim=1))
        y = ops.selective_scan(v, None, k, q, ops.Fading(self.rates), self.nothing, memory=states, plan=plan)
        y = ops.gate(y.flatten(1), self.gate(x), "sigmoid", self.norm.weight, self.norm.eps, "norm_first")
        return self.leave(y, residual)
