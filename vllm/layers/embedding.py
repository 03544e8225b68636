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
        self.weight = placement.parameter(num_rows, width)

    def forward(self, ids: Tensor) -> Tensor:
        return ops.embedding(ids, self.weight)

    def windows(self) -> Iterator[Window]:
        yield Window(f"{self.name}.weight", self.weight)


class TokenInput(nn.Module):
    """Token embeddings, scaled; the layers know about positions.  -> [T, D]"""

    def __init__(self, tokens: Embedding, scale: float) -> None:
        super().__init__()
        self.tokens = tokens
        # the factor is rounded to the model's dtype: gemma was trained with √3072 = 55.5
        self.scale = float(torch.tensor(scale, dtype=tokens.weight.dtype))

    def forward(self, step: Step) -> Tensor:
        return self.tokens(step.token_ids) * self.scale


class PositionedInput(nn.Module):
    """Token embeddings, projected to the model's width, plus learned position embeddings.  -> [T, D]"""

    def __init__(self, tokens: Embedding, project: nn.Module, positions: Embedding, offset: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.project = project
        self.positions = positions
        self.offset = offset

    def forward(self, step: Step) -> Tensor:
        return self.project(self.tokens(step.token_ids)) + self.positions(step.positions + self.offset)


class TiedLinear(nn.Module):
    """The product with an embedding's own table.  [T, D] -> [T, V]"""

    def __init__(self, embedding: Embedding) -> None:
        super().__init__()
        self.embedding = embedding

    def forward(self, x: Tensor) -> Tensor:
        return ops.linear(x, self.embedding.weight)


class Head(nn.Module):
    """Logits, in float32.  [R, D] -> [R, V]"""

    def __init__(self, project: nn.Module, vocabulary: Linear | TiedLinear, softcap: float) -> None:
        """`softcap` above 0: logits become softcap · tanh(logits / softcap)."""
        super().__init__()
        self.project = project
        self.vocabulary = vocabulary
        self.softcap = softcap

    def forward(self, hidden: Tensor) -> Tensor:
        logits = self.vocabulary(self.project(hidden)).float()
        return self.softcap * torch.tanh(logits / self.softcap) if self.softcap else logits
