"""The feed-forward part of a block: one network, or one of many per token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vllm import ops
from vllm.layers.linear import Linear
from vllm.layers.recurrent import Exact
from vllm.ops.activations import Clamp, activation, gated_activation
from vllm.ops.matrix import Matrix
from vllm.ops.moe import Routing
from vllm.ops.mxfp4 import Unpacked
from vllm.ops.parallel import ALONE, Group
from vllm.ops.rows import mean
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


class ClampedGate(nn.Module):
    """activation(gate(x)) · up(x), both bounded before: phi 3 small.  [T, D] -> [T, I]"""

    def __init__(self, product: Linear, activation: str, clamp: Clamp) -> None:
        """`product` makes gates and what they are gates of."""
        super().__init__()
        self.product = product
        self.activation = activation
        self.clamp = clamp

    def forward(self, x: Tensor) -> Tensor:
        return gated_activation(self.product(x), self.activation, self.clamp)


class SparseGate(nn.Module):
    """activation(gate(x)) · up(x), where a gate is what it is above most of its row's, and else 0.  [T, D] -> [T, I]"""

    def __init__(self, product: Linear, activation: str, sparsity: float) -> None:
        """`product` makes gates and what they are gates of; `sparsity`: the share that is cut off, of a normal distribution."""
        super().__init__()
        self.product = product
        self.activation = activation
        self.deviations = NormalDist().inv_cdf(sparsity)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.product(x).chunk(2, dim=1)
        wide = gate.float()
        wide = wide - mean(wide)
        deviation = mean(wide.square()).sqrt()
        kept = torch.relu(wide - deviation * self.deviations).to(x.dtype)
        return activation(kept, self.activation) * up


class Xielu(nn.Module):
    """A product, of which what is above 0 becomes p y² + y / 2, and what is below n (exp(y) - 1 - y) + y / 2: apertus.

    [T, D] -> [T, I].  https://arxiv.org/abs/2411.13010
    """

    def __init__(self, product: Linear, above: Exact, below: Exact) -> None:
        """`above`: p; `below`: n."""
        super().__init__()
        self.product = product
        self.above, self.below = above, below

    def forward(self, x: Tensor) -> Tensor:
        y = self.product(x).float()
        p, n = self.above.value, self.below.value
        found = torch.where(y > 0, p * y * y, n * (torch.expm1(y.clamp(max=-1e-6)) - y)) + 0.5 * y
        return found.to(x.dtype)


def softplus_above(least: float, stored: Tensor) -> Tensor:
    """Return what a learned number stands for that is more than `least`.  Same shape, float32"""
    return least + F.softplus(stored.float())


class PolyGate(nn.Module):
    """(a norm(g³) + b norm(g²) + c norm(g) + d) · up(x), where g is gate(x): motif.  [T, D] -> [T, I]

    https://arxiv.org/abs/2411.03884
    """

    def __init__(self, product: Linear, weights: Exact, bias: Exact, eps: float) -> None:
        """`product` makes gates and what they are gates of; `weights`: a, b and c; `bias`: d."""
        super().__init__()
        self.product = product
        self.weights, self.bias = weights, bias
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.product(x).chunk(2, dim=1)
        wide, found = gate.float(), self.bias.value
        for power, weight in zip((wide * wide * wide, wide * wide, wide), self.weights.value, strict=True):
            found = found + weight * power * torch.rsqrt(mean(power * power) + self.eps)
        return found.to(x.dtype) * up


@dataclass(frozen=True, slots=True)
class ExpertPart:
    """A tensor of the checkpoint, or two, and the rows of an expert's matrix that are in it."""

    name: str
    """Its whole name; that of packed rows, without what tells its two tensors apart"""
    expert: int
    matrix: Literal["gate_up", "down"]
    first: int
    rows: int
    cut: Callable[[Tensor], Tensor] | None = None
    kind: Literal["rows", "biases", "mxfp4"] = "rows"


class MoE(nn.Module):
    """Networks of which a router chooses `top_k` per token.  [T, D] -> [T, D]"""

    def __init__(
        self,
        router: nn.Module,
        parts: Sequence[ExpertPart],
        matrices: tuple[nn.ModuleList, nn.ModuleList],
        *,
        routing: Routing,
        activation: str,
        clamp: Clamp | None = None,
        correction: Exact | None = None,
        group: Group = ALONE,
    ) -> None:
        """`parts` are what the checkpoint has of all experts; `matrices` are theirs, of gate and up and of down; `correction`
        is added to the scores that experts are chosen by; each process of `group` has a share of every expert's inner elements."""
        super().__init__()
        self.group = group
        self.router = router
        self.parts = tuple(parts)
        self.routing = routing
        self.correction = correction
        self.activation = activation
        self.clamp = clamp
        self.gate_up, self.down = (cast("Sequence[Matrix]", experts) for experts in matrices)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        weights, ids = self.route(x)
        y = self.mix(x, weights, ids)
        return y if residual is None else ops.add(y, residual)

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Choose each token's experts.  [T, D] -> weights [T, K], ids [T, K]"""
        if self.correction is None:
            return ops.route(self.router(x), self.routing)
        # the choice hangs on small differences
        return ops.route(self.router(x, dtype=torch.float32), self.routing, self.correction.value)

    def mix(self, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        """Add up what each token's experts make of it."""
        y = ops.moe(x, weights, ids, self.gate_up, self.down, activation=self.activation, clamp=self.clamp)
        return self.group.add_up(y)

    def windows(self) -> Iterator[Window]:
        matrices = {"gate_up": self.gate_up, "down": self.down}
        for part in self.parts:
            matrix = matrices[part.matrix][part.expert]
            if part.kind == "biases":
                yield Window(part.name, matrix.bias_place(part.first, part.rows), part.cut)
                continue
            place = matrix.place(part.first, part.rows)
            if part.kind == "rows":
                yield Window(part.name, place, part.cut)
                continue
            packed = Unpacked(part.name, place)
            yield Window(f"{part.name}_blocks", packed.blocks, part.cut)
            yield Window(f"{part.name}_scales", packed.scales, part.cut)


class NarrowMoE(MoE):
    """Networks that work on something narrower than a token: nemotron.  [T, D] -> [T, D]"""

    def __init__(self, around: tuple[Linear, Linear], *args: Any, **options: Any) -> None:
        """`around` are the products before and behind the experts; the rest as above."""
        super().__init__(*args, **options)
        self.narrow, self.widen = around

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        weights, ids = self.route(x)
        return cast("Tensor", self.widen(self.mix(self.narrow(x), weights, ids), residual))


class IdentityMoE(MoE):
    """Networks beside which there are others to choose that do nothing: longcat.  [T, D] -> [T, D]"""

    def mix(self, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        y = ops.moe(
            x, weights, ids, self.gate_up, self.down, activation=self.activation, clamp=self.clamp, identities=True
        )
        return self.group.add_up(y)


class InputMoE(MoE):
    """Networks that are given a token times its weight: llama 4.  [T, D] -> [T, D]"""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        weights, ids = self.route(x)
        chosen = ids.shape[1]
        weighed = (x.repeat_interleave(chosen, 0).float() * weights.reshape(-1, 1)).to(x.dtype)  # [T K, D]
        ones = torch.ones_like(weights).view(-1, 1)
        found = self.mix(weighed, ones, ids.view(-1, 1))
        for part in found.unflatten(0, (-1, chosen)).unbind(1):
            residual = part.contiguous() if residual is None else ops.add(residual, part)
        assert residual is not None, "each token has an expert"
        return residual


class NormedRouter(nn.Module):
    """Scores of a token that is normalised and scaled by itself.  [T, D] -> [T, X]"""

    def __init__(self, norm: nn.Module, scale: Exact, product: Linear) -> None:
        super().__init__()
        self.norm, self.scale, self.product = norm, scale, product

    def forward(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        scaled = self.norm(x) * (self.scale.value * x.shape[1] ** -0.5)
        return cast("Tensor", self.product(scaled.to(x.dtype), dtype=dtype))


class GuidedMoE(MoE):
    """Networks that are chosen by something else than what they read, and scaled: gemma 4.  [T, D], [T, D] -> [T, D]"""

    def __init__(self, scales: Exact, *args: Any, **options: Any) -> None:
        """`scales`: what each network's weight is multiplied with; the rest as above."""
        super().__init__(*args, **options)
        self.scales = scales

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:  # type: ignore[override]
        weights, ids = self.route(guide)
        return self.mix(x, weights * self.scales.value[ids], ids)


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
