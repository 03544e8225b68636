"""The feed-forward part of a block: one network, or one of many per token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from vllm import ops
from vllm.layers.linear import Linear
from vllm.layers.placement import Placement
from vllm.layers.recurrent import Exact
from vllm.ops.activations import activation
from vllm.ops.matrix import Matrix
from vllm.ops.moe import Routing
from vllm.weights import Window


class Mlp(nn.Module):
    """down(activation(up(x))), or down(activation(gate(x)) · up(x)).  [T, D] -> [T, D]"""

    def __init__(self, up: nn.Module, down: Linear) -> None:
        """`up` applies the activation, and is gated where there is a gate."""
        super().__init__()
        self.up = up
        self.down = down

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return self.down(self.up(x), residual)


@dataclass(frozen=True, slots=True)
class ExpertNames:
    """The names of one expert's three matrices in the checkpoint, without `.weight`."""

    gate: str
    """\"\" for an expert without a gate"""
    up: str
    down: str
    index: int | None = None
    """Its place in tensors that hold the matrices of all experts, gate above up"""


class MoE(nn.Module):
    """Networks of which a router chooses `top_k` per token.  [T, D] -> [T, D]"""

    def __init__(
        self,
        router: Linear,
        experts: Sequence[ExpertNames],
        shape: tuple[int, int],
        placement: Placement,
        *,
        routing: Routing,
        activation: str,
        correction: Exact | None = None,
        around: tuple[Linear, Linear] | None = None,
    ) -> None:
        """`shape` is (what an expert reads, its width); `correction` is added to the scores that experts are chosen by; `around`
        are the products before and behind experts that read something narrower than D."""
        super().__init__()
        outer, inner = shape
        gated = bool(experts[0].gate)
        self.router = router
        self.experts = tuple(experts)
        self.routing = routing
        self.correction = correction
        self.activation = activation
        self.gate_up = cast(
            "Sequence[Matrix]", placement.experts(len(experts), (1 + gated) * inner, outer, gated=gated)
        )
        self.down = cast("Sequence[Matrix]", placement.experts(len(experts), outer, inner))
        self.around = None if around is None else nn.ModuleList(around)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if self.correction is None:
            weights, ids = ops.route(self.router(x), self.routing)
        else:  # the choice hangs on small differences
            weights, ids = ops.route(self.router(x, dtype=torch.float32), self.routing, self.correction.value)
        if self.around is not None:
            narrow, widen = self.around
            y = ops.moe(narrow(x), weights, ids, self.gate_up, self.down, activation=self.activation)
            return widen(y, residual)
        y = ops.moe(x, weights, ids, self.gate_up, self.down, activation=self.activation)
        return y if residual is None else ops.add(y, residual)

    def windows(self) -> Iterator[Window]:
        for names, gate_up, down in zip(self.experts, self.gate_up, self.down, strict=True):
            inner = down.shape.width
            if names.index is not None:
                cut = partial(torch.select, dim=0, index=names.index)
                yield Window(f"{names.gate}.weight", gate_up.place(0, 2 * inner), cut)
                yield Window(f"{names.down}.weight", down.place(0, down.shape.rows), cut)
                continue
            if names.gate:
                yield Window(f"{names.gate}.weight", gate_up.place(0, inner))
            yield Window(f"{names.up}.weight", gate_up.place(inner if names.gate else 0, inner))
            yield Window(f"{names.down}.weight", down.place(0, down.shape.rows))


class SharedMoE(nn.Module):
    """Networks of which each token chooses some, and one that all of them pass.  [T, D] -> [T, D]"""

    def __init__(self, chosen: MoE, shared: Mlp, gate: Linear | None) -> None:
        """`gate` weights the shared network's result, token by token."""
        super().__init__()
        self.chosen = chosen
        self.shared = shared
        self.gate = gate

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if self.gate is None:
            return self.shared(x, self.chosen(x, residual))
        weight = activation(self.gate(x), "sigmoid")
        return ops.add(self.chosen(x, residual), self.shared(x) * weight)
