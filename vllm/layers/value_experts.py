"""Values that are made by experts of one product each: K2 Horizon."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from vllm import ops
from vllm.layers.linear import Linear
from vllm.layers.recurrent import Exact
from vllm.ops.matrix import Matrix
from vllm.ops.moe import Routing
from vllm.weights import Window


class ChosenValues(nn.Module):
    """A product for q, k and what stands behind v, and for v the sum of what a token's experts make.  [T, D] -> [T, N]"""

    def __init__(
        self,
        product: Linear,
        before: int,
        router: tuple[Linear, Exact | None],
        experts: tuple[nn.ModuleList, Sequence[str]],
        *,
        routing: Routing,
        activation: str,
    ) -> None:
        """`before`: how many results of the product stand before v; `router`: with what is added to the scores that experts are
        chosen by; `experts`: with their names in the checkpoint."""
        super().__init__()
        self.product = product
        self.before = before
        self.router, self.correction = router
        self.experts, self.names = cast("Sequence[Matrix]", experts[0]), experts[1]
        self.routing = routing
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        correction = None if self.correction is None else self.correction.value
        y, scores = self.product(x), self.router(x, dtype=x.dtype if correction is None else torch.float32)
        weights, ids = ops.route(scores, self.routing, correction)
        v = ops.chosen_products(x, weights, ids, self.experts, activation=self.activation)
        if y.shape[1] == self.before:
            return ops.side_by_side(y, v)
        return ops.side_by_side(y[:, : self.before].contiguous(), v, y[:, self.before :].contiguous())

    def windows(self) -> Iterator[Window]:
        for name, matrix in zip(self.names, self.experts, strict=True):
            yield Window(f"{name}.weight", matrix.place(0, matrix.shape.rows))
