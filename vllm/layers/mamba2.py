"""Mamba 2: a selective state space with heads.  https://arxiv.org/abs/2405.21060"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from vllm import ops
from vllm.kv_cache.spec import State, StateTensor
from vllm.layers.linear import Linear
from vllm.layers.placement import Placement
from vllm.layers.recurrent import CausalConv, Exact, dtype_name, states_of
from vllm.layers.step import Step
from vllm.ops.recurrent import GateOrder
from vllm.weights import TensorPlace, Window


class Gate(nn.Module):
    """x · silu(gate).  [T, I] float32, [T, I] -> [T, I]"""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return ops.gate(x, gate, "silu")


class GatedNorm(nn.Module):
    """rms norm of x · silu(gate), group by group, or rms norm of x before the gate.  [T, I] float32, [T, I] -> [T, I]"""

    def __init__(
        self, width: int, groups: int, name: str, placement: Placement, eps: float, order: GateOrder = "gate_first"
    ) -> None:
        super().__init__()
        self.name = name
        self.groups = groups
        self.weight = placement.parameter(width)
        self.eps = eps
        self.order = order

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        x, gate, weight = (part.unflatten(-1, (self.groups, -1)) for part in (x, gate, self.weight))
        return ops.gate(x, gate, "silu", weight, self.eps, self.order).flatten(1)

    def windows(self) -> Iterator[Window]:
        yield Window(f"{self.name}.weight", TensorPlace(self.weight))


class Mamba2(nn.Module):
    """Every head has a state [N, P], which fades as a whole by as much as a token says.  [T, D] -> [T, D]"""

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
        output weights.  `projections` are those to gate, channels, weights and time steps, and out.  `decay` are A [H], D
        [H] and what is added to the time steps [H].  `norm` turns (result, gate) into what is projected out; `time_limits` are
        what time steps are brought into."""
        super().__init__()
        self.index = index
        self.heads = heads
        self.enter, self.leave = projections
        self.conv = conv
        self.a, self.skip, self.dt_bias = decay
        self.norm = norm
        self.activation = activation
        self.time_limits = time_limits

    @property
    def cache_spec(self) -> State:
        """What memory this layer needs."""
        heads, head_dim, _, width = self.heads
        before = StateTensor(self.conv.state_shape, dtype_name(self.conv.weight.dtype))
        return State((before, StateTensor((heads, width, head_dim), "float32")))

    def forward(self, x: Tensor, step: Step, residual: Tensor | None = None) -> Tensor:
        (before, states), plan = states_of(step, self.index)
        heads, head_dim, groups, width = self.heads
        inner, shared = heads * head_dim, groups * width
        gate, mixed, dt = self.enter(x).split((inner, inner + 2 * shared, heads), dim=1)
        channels, b, c = self.conv(mixed, before, plan, self.activation).split((inner, shared, shared), dim=1)
        channels, b, c = (
            part.unflatten(1, (count, -1)) for part, count in ((channels, heads), (b, groups), (c, groups))
        )
        fading = ops.Fading(self.a.value, self.dt_bias.value, self.time_limits)
        y = ops.selective_scan(channels, dt, b, c, fading, self.skip.value, memory=states, plan=plan)
        return self.leave(self.norm(y.flatten(1), gate), residual)
