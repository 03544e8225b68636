"""From token ids to the first hidden state, and from the last one to logits."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from vllm import ops
from vllm.layers.linear import Linear
from vllm.layers.placement import Placement
from vllm.layers.step import Step
from vllm.weights import Window


class Embedding(nn.Module):
    """A table of rows, stored in the checkpoint as `name`.weight.  [T] -> [T, D]"""

    def __init__(self, num_rows: int, width: int, name: str, placement: Placement) -> None:
        super().__init__()
        self.name = name
        self.matrix = placement.unquantized.matrix(num_rows, width)

    def forward(self, ids: Tensor, scale: float = 1.0, offset: int = 0) -> Tensor:
        return self.matrix.look_up(ids, scale, offset)

    def windows(self) -> Iterator[Window]:
        yield Window(f"{self.name}.weight", self.matrix.place(0, self.matrix.shape.rows))


class TokenInput(nn.Module):
    """Token embeddings, scaled; the layers know about positions.  -> [T, D]"""

    def __init__(self, tokens: Embedding, scale: float) -> None:
        super().__init__()
        self.tokens = tokens
        # the factor is rounded to the model's dtype: gemma was trained with √3072 = 55.5
        self.scale = float(torch.tensor(scale, dtype=tokens.matrix.shape.dtype))

    def forward(self, step: Step) -> Tensor:
        return self.tokens(step.token_ids, self.scale)


class PositionedInput(nn.Module):
    """Token embeddings, projected to the model's width, plus learned position embeddings.  -> [T, D]"""

    def __init__(self, tokens: Embedding, project: nn.Module, positions: Embedding, offset: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.project = project
        self.positions = positions
        self.offset = offset

    def forward(self, step: Step) -> Tensor:
        tokens = self.project(self.tokens(step.token_ids))
        return ops.add(tokens, self.positions(step.positions, offset=self.offset))


class TiedLinear(nn.Module):
    """The product with an embedding's table: with itself, or with a quantized copy of it.  [T, D] -> [T, V]"""

    def __init__(self, embedding: Embedding, placement: Placement) -> None:
        super().__init__()
        self.name = embedding.name
        shape = embedding.matrix.shape
        self.own = placement.matrix(shape.rows, shape.width) if placement.format else None
        self.matrix = self.own or embedding.matrix

    def forward(self, x: Tensor, residual: None = None, dtype: torch.dtype | None = None) -> Tensor:
        return self.matrix.multiply(x, dtype=dtype)

    def windows(self) -> Iterator[Window]:
        if self.own is not None:
            yield Window(f"{self.name}.weight", self.own.place(0, self.own.shape.rows))


class Head(nn.Module):
    """Logits, in float32.  [R, D] -> [R, V]"""

    def __init__(self, project: nn.Module, vocabulary: Linear | TiedLinear, softcap: float) -> None:
        """`softcap` above 0: logits become softcap · tanh(logits / softcap)."""
        super().__init__()
        self.project = project
        self.vocabulary = vocabulary
        self.softcap = softcap

    def forward(self, hidden: Tensor) -> Tensor:
        logits = self.vocabulary(self.project(hidden), dtype=torch.float32)
        return ops.softcap(logits, self.softcap) if self.softcap else logits
