"""Delta nets: a memory of values by keys, of which a token overwrites a part.  https://arxiv.org/abs/2412.06464"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vllm import ops
from vllm.kv_cache.spec import State, StateTensor
from vllm.layers.linear import Linear
from vllm.layers.norm import RmsNorm
from vllm.layers.recurrent import CausalConv, Exact, dtype_name, states_of
from vllm.layers.step import Step


class GatedDeltaNet(nn.Module):
    """Every value head has a state [K, V], which fades, and in which a key's value is corrected.  [T, D] -> [T, D]"""

    def __init__(
        self,
        index: int,
        heads: tuple[int, int, int, int],
        projections: tuple[Linear, Linear, Linear],
        conv: CausalConv,
        decay: tuple[Exact, Exact],
        norm: RmsNorm,
        *,
        activation: str,
        gate: str = "silu",
        strength: float = 1.0,
    ) -> None:
        """`index` counts the layers that have a cache, in call order.  `heads` is (key heads, value heads, K, V).  `projections`
        are those to queries, keys, values and gate; to the strength of corrections and the decay; and out.  `decay` are A
        and what is added to the time steps, of each value head.  `gate` is the activation of the gate; corrections are
        multiplied with `strength`."""
        super().__init__()
        self.index = index
        self.heads = heads
        self.enter, self.control, self.leave = projections
        self.conv = conv
        self.a, self.dt_bias = decay
        self.norm = norm
        self.activation = activation
        self.gate = gate
        self.strength = strength

    @property
    def cache_spec(self) -> State:
        """What memory this layer needs."""
        _, value_heads, key_dim, value_dim = self.heads
        before = StateTensor(self.conv.state_shape, dtype_name(self.conv.weight.dtype))
        return State((before, StateTensor((value_heads, key_dim, value_dim), "float32")))

    def inputs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Make queries, keys and values together; gate; strengths; and what time steps are made of.

        [T, D] -> [T, 2 Hk K + Hv V], [T, Hv V], [T, Hv] float32, [T, Hv] float32
        """
        key_heads, value_heads, key_dim, value_dim = self.heads
        values = value_heads * value_dim
        mixed, gate = self.enter(x).split((2 * key_heads * key_dim + values, values), dim=1)
        beta, dt = self.control(x, dtype=torch.float32).chunk(2, dim=1)
        return mixed, gate, beta, dt

    def forward(self, x: Tensor, step: Step, residual: Tensor | None = None) -> Tensor:
        (before, states), plan = states_of(step, self.index)
        key_heads, value_heads, key_dim, value_dim = self.heads
        keys, values = key_heads * key_dim, value_heads * value_dim
        mixed, gate, beta, dt = self.inputs(x)
        mixed = self.conv(mixed, before, plan, self.activation, torch.float32)
        q, k, v = mixed.split((keys, keys, values), dim=1)
        q, k, v = q.unflatten(1, (key_heads, -1)), k.unflatten(1, (key_heads, -1)), v.unflatten(1, (value_heads, -1))
        fading = ops.Fading(self.a.value, self.dt_bias.value)
        y = ops.gated_delta(q, k, v, dt, beta, fading, self.strength, memory=states, plan=plan)
        gate = gate.unflatten(1, (value_heads, -1))
        y = ops.gate(y, gate, self.gate, self.norm.weight, self.norm.eps, "norm_first")
        return self.leave(y.flatten(1), residual)


class KimiDeltaNet(GatedDeltaNet):
    """Each element of a key fades by itself; gate and time steps come by way of something narrow.

    https://arxiv.org/abs/2510.26692
    """

    def __init__(self, widen: tuple[Linear, Linear], *net: Any, **options: Any) -> None:
        """`widen` are the products that make time steps and gate of what lies behind the values; the rest is as above."""
        super().__init__(*net, **options)
        self.to_steps, self.to_gate = widen

    def inputs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Make the same, but time steps [T, H, K]."""
        heads, _, key_dim, value_dim = self.heads
        widths = (layer.matrix.shape.width for layer in (self.to_steps, self.to_gate))
        mixed, steps, gate = self.enter(x).split((heads * (2 * key_dim + value_dim), *widths), dim=1)
        dt = self.to_steps(steps, dtype=torch.float32).unflatten(1, (heads, -1))
        return mixed, self.to_gate(gate), self.control(x, dtype=torch.float32), dt
