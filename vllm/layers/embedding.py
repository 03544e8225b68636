"""From token ids to the first hidden state, and from the last one to logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from vllm import ops
from vllm.layers.linear import Linear
from vllm.layers.placement import Placement
from vllm.layers.step import Step
from vllm.ops.matrix import DenseMatrix, MatrixShape
from vllm.weights import Place, Window


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


class Appended(Embedding):
    """A table of which the last rows are a tensor by themselves.  [T] -> [T, D]"""

    def __init__(self, rows: tuple[int, int], width: int, names: tuple[str, str], placement: Placement) -> None:
        """`names` are the whole names of the tensors, in the checkpoint."""
        super().__init__(0, width, names[0], placement)
        # in one piece, which kernels' matrices that keep tensors where they lie in a file are not
        self.matrix = DenseMatrix(MatrixShape(sum(rows), width, placement.dtype, placement.device))
        self.rows, self.names = rows, names

    def windows(self) -> Iterator[Window]:
        for first, rows, name in zip((0, self.rows[0]), self.rows, self.names, strict=True):
            yield Window(name, self.matrix.place(first, rows))


class TokenInput(nn.Module):
    """Token embeddings, scaled; the layers know about positions.  -> [T, D]"""

    def __init__(self, tokens: Embedding, scale: float) -> None:
        super().__init__()
        self.tokens = tokens
        # the factor is rounded to the model's dtype: gemma was trained with √3072 = 55.5
        self.scale = float(torch.tensor(scale, dtype=tokens.matrix.shape.dtype))

    def forward(self, step: Step) -> Tensor:
        return self.tokens(step.token_ids, self.scale)


class Positions(nn.Module):
    """Learned embeddings of positions.  -> [T, D]"""

    def __init__(self, table: Embedding, offset: int) -> None:
        """`offset` is the row of position 0."""
        super().__init__()
        self.table = table
        self.offset = offset

    def forward(self, step: Step) -> Tensor:
        return self.table(step.positions, offset=self.offset)


class Waves(Embedding):
    """Sines, then cosines, of frequencies that fall from 1 to 1 / 10000; a checkpoint may hold them.  [T] -> [T, D]"""

    def __init__(self, num_rows: int, width: int, name: str, placement: Placement, kind: str) -> None:
        """`kind`: whether the last frequency is that one ("fairseq") or the next would be ("vaswani")."""
        super().__init__(num_rows, width, name, placement)
        sines, cosines = width - width // 2, width // 2
        steps = torch.arange(sines, dtype=torch.float64) / (width / 2 if kind == "vaswani" else sines - 1)
        angles = torch.arange(num_rows, dtype=torch.float64)[:, None] * 10000.0**-steps
        table = torch.cat((angles.sin(), angles[:, :cosines].cos()), dim=1).to(placement.dtype)
        self.matrix.place(0, num_rows).put(table)

    def windows(self) -> Iterator[Window]:
        return (replace(window, optional=True) for window in super().windows())


class TokenTypes(nn.Module):
    """Learned embeddings of which of a pair of texts a token is of.  -> [T, D]"""

    def __init__(self, num_types: int, width: int, name: str, placement: Placement) -> None:
        """A model that knows one type takes the second text for it too."""
        super().__init__()
        self.name = name
        self.num_types = num_types
        self.matrix = placement.unquantized.matrix(max(num_types, 2), width)

    def forward(self, step: Step) -> Tensor:
        return self.matrix.look_up(step.token_types)

    def windows(self) -> Iterator[Window]:
        rows = self.matrix.shape.rows
        cut = None if rows == self.num_types else lambda stored: stored.expand(rows, -1)
        yield Window(f"{self.name}.weight", self.matrix.place(0, rows), cut)


class Sum(nn.Module):
    """The sum of several embeddings of a token.  -> [T, D]"""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, step: Step) -> Tensor:
        first, *others = self.parts
        x: Tensor = first(step)
        for other in others:
            x = ops.add(x, other(step))
        return x


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


class OwnOrTied(nn.Module):
    """The product with a matrix of its own, where the checkpoint has one, or with an embedding's table.  [T, D] -> [T, V]"""

    def __init__(self, name: str, tied: TiedLinear, placement: Placement) -> None:
        super().__init__()
        self.name = name
        self.tied = tied
        shape = tied.matrix.shape
        self.own = placement.matrix(shape.rows, shape.width)
        self._is_own = False

    def forward(self, x: Tensor, residual: None = None, dtype: torch.dtype | None = None) -> Tensor:
        return self.own.multiply(x, dtype=dtype) if self._is_own else self.tied(x, None, dtype)

    def windows(self) -> Iterator[Window]:
        place = _Noted(self.own.place(0, self.own.shape.rows), self._note)
        yield Window(f"{self.name}.weight", place, optional=True)

    def _note(self) -> None:
        self._is_own = True


@dataclass(frozen=True, slots=True)
class _Noted:
    """A place that tells when it is filled."""

    place: Place
    note: Callable[[], None]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.place.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.place.dtype

    def put(self, part: Tensor) -> None:
        self.place.put(part)
        self.note()


class Head(nn.Module):
    """Logits, in float32.  [R, D] -> [R, V]"""

    def __init__(self, project: nn.Module, vocabulary: nn.Module, softcap: float, scale: float = 1.0) -> None:
        """`vocabulary` takes hidden states and the dtype of its result; `softcap` above 0: logits become
        softcap · tanh(logits / softcap).  `scale`: they are multiplied with it first."""
        super().__init__()
        self.project = project
        self.vocabulary = vocabulary
        self.softcap = softcap
        self.scale = scale

    def forward(self, hidden: Tensor) -> Tensor:
        return self._scaled(self.vocabulary(self.project(hidden), dtype=torch.float32))

    @property
    def is_gathered(self) -> bool:
        """Whether several processes have the vocabulary, so that it is better to look for the greatest logit than for all."""
        return isinstance(self.vocabulary, Linear) and self.vocabulary.is_gathered

    def greatest(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Find each row's greatest logit, NaN if there is one, and its token, of equal ones the first.  [R, D] -> [R], [R] int32"""
        assert isinstance(self.vocabulary, Linear), "the whole vocabulary is here"
        return self.vocabulary.greatest(self.project(hidden), self._scaled)

    def _scaled(self, logits: Tensor) -> Tensor:
        if self.scale != 1.0:
            logits = logits * self.scale
        return ops.softcap(logits, self.softcap) if self.softcap else logits


class MaskedHead(Head):
    """Logits of which those of some tokens are the lowest that there are.  [R, D] -> [R, V]"""

    never: Tensor

    def __init__(self, never: Sequence[int], device: torch.device, *args: Any) -> None:
        """`never`: those tokens; the rest as above."""
        super().__init__(*args)
        self.register_buffer("never", torch.tensor(never, device=device), persistent=False)

    @property
    def is_gathered(self) -> bool:
        """It looks at all logits in any case."""
        return False

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden).index_fill(1, self.never, torch.finfo(torch.float32).min)
