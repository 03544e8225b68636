"""The feed-forward part of a block: one network, or one of many per token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from vllm import ops
from vllm.layers.linear import Linear
from vllm.layers.placement import Placement
from vllm.weights import Window


class GatedMlp(nn.Module):
    """down(activation(gate(x)) · up(x)).  [T, D] -> [T, D]"""

    def __init__(self, gate_up: Linear, down: Linear, activation: str) -> None:
        super().__init__()
        self.gate_up = gate_up
        self.down = down
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.down(ops.gated_activation(self.gate_up(x), self.activation))


class Mlp(nn.Module):
    """down(activation(up(x))).  [T, D] -> [T, D]"""

    def __init__(self, up: Linear, down: Linear, activation: str) -> None:
        super().__init__()
        self.up = up
        self.down = down
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.down(ops.activation(self.up(x), self.activation))


@dataclass(frozen=True, slots=True)
class ExpertNames:
    """The names of one expert's three matrices in the checkpoint, without `.weight`."""

    gate: str
    up: str
    down: str


class MoE(nn.Module):
    """Gated networks of which a router chooses `top_k` per token.  [T, D] -> [T, D]"""

    def __init__(
        self,
        router: Linear,
        experts: Sequence[ExpertNames],
        shape: tuple[int, int],
        placement: Placement,
        *,
        top_k: int,
        renormalize: bool,
        activation: str,
    ) -> None:
        """`shape` is (D, width of an expert); `renormalize`: the chosen experts' weights sum to 1."""
        super().__init__()
        outer, inner = shape
        self.router = router
        self.experts = tuple(experts)
        self.top_k = top_k
        self.renormalize = renormalize
        self.activation = activation
        self.gate_up = placement.parameter(len(experts), 2 * inner, outer)
        self.down = placement.parameter(len(experts), outer, inner)

    def forward(self, x: Tensor) -> Tensor:
        weights, ids = ops.route(self.router(x), self.top_k, self.renormalize)
        return ops.moe(x, weights, ids, self.gate_up, self.down, activation=self.activation)

    def windows(self) -> Iterator[Window]:
        for names, gate_up, down in zip(self.experts, self.gate_up, self.down, strict=True):
            gate, up = gate_up.chunk(2)
            yield Window(f"{names.gate}.weight", gate)
            yield Window(f"{names.up}.weight", up)
            yield Window(f"{names.down}.weight", down)
