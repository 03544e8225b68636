"""Several hidden states of a token side by side, of which a layer computes one and moves all: gemma 3n.
https://arxiv.org/abs/2301.13310

x [T, N, D] ─▶ predict ─┬──────────────────────────────────▶ correct ─▶ [T, N, D]
                        └─ the active one ─▶ layer ─────────────┘
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from vllm.layers.linear import Linear
from vllm.layers.per_layer import Reader
from vllm.layers.recurrent import Exact
from vllm.layers.step import Step
from vllm.ops.activations import activation
from vllm.ops.rows import mean

_LEAST = 1e-5
"""Of a mean square that something is divided by"""


class LanesInput(nn.Module):
    """An entry whose result is projected to further states, as long as itself.  -> [T, N, D]"""

    def __init__(self, entry: nn.Module, projections: Sequence[Linear]) -> None:
        super().__init__()
        self.entry = entry
        self.projections = nn.ModuleList(projections)

    def forward(self, step: Step) -> Tensor:
        x: Tensor = self.entry(step)
        return torch.stack([x, *(_as_long(project(x), x) for project in self.projections)], dim=1)


class LanesOutput(nn.Module):
    """The mean of the first state and what the others are projected back to, normalised.  [T, N, D] -> [T, D]"""

    def __init__(self, projections: Sequence[Linear], norm: nn.Module) -> None:
        super().__init__()
        self.projections = nn.ModuleList(projections)
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        first, *others = (lane.contiguous() for lane in x.unbind(1))
        total = first
        for project, lane in zip(self.projections, others, strict=True):
            total = total + _as_long(project(lane), first)
        return cast("Tensor", self.norm(total / x.shape[1]))


def _as_long(x: Tensor, like: Tensor) -> Tensor:
    """Bring rows to the lengths of others.  [T, D], [T, D] -> [T, D]"""
    target, own = (mean(rows.float().square()) for rows in (like, x))
    return (x * (target / own.clamp(min=_LEAST)).sqrt()).to(x.dtype)


class Lanes(nn.Module):
    """What all states are predicted and corrected by."""

    def __init__(self, active: int, norm: nn.Module, products: tuple[Linear, Linear, Linear]) -> None:
        """`active`: which state the layer computes; `products` make of a state what weighs all [N], of that what each takes of
        each [N N], and what each takes of the change [N]."""
        super().__init__()
        self.active = active
        self.norm = norm
        self.router, self.prediction, self.correction = products

    def predict(self, x: Tensor) -> Tensor:
        """Let each state take something of all.  [T, N, D] -> [T, N, D]"""
        count = x.shape[1]
        shares = self.prediction(self._weights(x[:, self.active].contiguous())).unflatten(1, (count, count))
        taken = x
        for lane in range(count):
            taken = taken + shares[:, :, lane, None] * x[:, lane, None]
        return taken

    def correct(self, predicted: Tensor, computed: Tensor) -> Tensor:
        """Let each state take something of what computing the active one changed.  [T, N, D], [T, D] -> [T, N, D]"""
        shares = self.correction(self._weights(computed)) + 1
        change = computed - predicted[:, self.active]
        return predicted + shares[:, :, None] * change[:, None]

    def _weights(self, x: Tensor) -> Tensor:
        return activation(self.router((self.norm(x) / x.shape[1]).to(x.dtype)), "tanh")


class AltUp(nn.Module):
    """A sandwich around the active state, with a narrow product beside its attention; the layer's own embeddings move the
    states behind the first.  [T, N, D] -> [T, N, D]"""

    def __init__(
        self,
        lanes: Lanes,
        branches: tuple[nn.Module, nn.Module],
        norms: tuple[nn.Module, ...],
        laurel: tuple[Linear, Linear, nn.Module],
        reader: Reader,
        scale: Exact | None,
    ) -> None:
        """`laurel`: into something narrow, back, and a norm.  `scale`: of what the embeddings are read by."""
        super().__init__()
        self.lanes = lanes
        self.attention, self.ffn = branches
        self.before_attention, self.after_attention, self.before_ffn, self.after_ffn = norms
        self.narrow, self.widen, self.laurel_norm = laurel
        self.reader = reader
        self.scale = scale

    def forward(self, x: Tensor, step: Step) -> Tensor:
        predicted = self.lanes.predict(x)
        active = predicted[:, self.lanes.active].contiguous()
        normed = self.before_attention(active)
        beside = self.laurel_norm(self.widen(self.narrow(normed)), normed)
        y = self.after_attention(self.attention(normed, step), active)
        y = (y + beside) * math.sqrt(0.5)
        y = self.after_ffn(self.ffn(self.before_ffn(y)), y)
        states = self.lanes.correct(predicted, y)
        read = states[:, self.lanes.active]
        added = self.reader((read if self.scale is None else read * self.scale.value).to(x.dtype).contiguous())
        return torch.cat((states[:, :1], states[:, 1:] + added[:, None]), dim=1)
