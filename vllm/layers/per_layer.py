"""Embeddings that tokens have for each layer, beside those that the first layer reads: gemma 3n and 4.

token ─┬─▶ embedding ─┬────────────────────────▶ layers
       │              └─▶ product ─▶ norm ─┐        ▲
       └─▶ embeddings of all layers ───────+────────┘
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vllm.layers.embedding import Embedding
from vllm.layers.linear import Linear
from vllm.layers.recurrent import Exact
from vllm.layers.step import Step
from vllm.ops.activations import activation


class PerLayerInput(nn.Module):
    """An entry that has something for each layer too.  -> [T, D]"""

    def __init__(self, entry: nn.Module, table: Embedding, project: Linear, norm: nn.Module, width: int) -> None:
        """`table` holds the embeddings of all layers, of `width` each, side by side; `project` makes as much of what the entry
        makes."""
        super().__init__()
        self.entry = entry
        self.table, self.project, self.norm = table, project, norm
        self.width = width
        self._made: Tensor | None = None

    def forward(self, step: Step) -> Tensor:
        x: Tensor = self.entry(step)
        ids = step.token_ids
        known = ids < self.table.matrix.shape.rows  # media have tokens beyond the table's
        own = self.table(torch.where(known, ids, 0), math.sqrt(self.width)).unflatten(1, (-1, self.width))
        made = self.norm((self.project(x) * x.shape[1] ** -0.5).unflatten(1, (-1, self.width)))
        self._made = (made + own) * math.sqrt(0.5)
        return x

    def of(self, layer: int) -> Tensor:
        """Return what a layer has of the step that is under way.  -> [T, P]"""
        assert self._made is not None, "the entry is run before the layers"
        return self._made[:, layer]


class Reader(nn.Module):
    """What a layer makes of its own embeddings.  [T, D] -> [T, D]"""

    def __init__(
        self, source: PerLayerInput, layer: int, products: tuple[Linear, Linear], norm: nn.Module, activation: str
    ) -> None:
        """`products`: into the width of such an embedding, and back."""
        super().__init__()
        self.layer = layer
        self.gate, self.out = products
        self.norm = norm
        self.activation = activation
        self._of = source.of

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        gated = activation(self.gate(x), self.activation) * self._of(self.layer)
        y: Tensor = self.norm(self.out(gated), residual)
        return y


class Reading(nn.Module):
    """A block, and what its layer's own embeddings add.  [T, D] -> [T, D]"""

    def __init__(self, block: nn.Module, reader: Reader) -> None:
        super().__init__()
        self.block = block
        self.reader = reader

    def forward(self, x: Tensor, step: Step) -> Tensor:
        x = self.block(x, step)
        y: Tensor = self.reader(x, x)
        return y


class Scaled(nn.Module):
    """A block whose result is multiplied with a learned number.  [T, D] -> [T, D]"""

    def __init__(self, block: nn.Module, scale: Exact) -> None:
        super().__init__()
        self.block = block
        self.scale = scale

    def forward(self, x: Tensor, step: Step) -> Tensor:
        x = self.block(x, step)
        return x * self.scale.value.to(x.dtype)
