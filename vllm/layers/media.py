"""Where what a tower saw enters a decoder.

    token ids     12  7  ▢  ▢  ▢  9
    embeddings     t  t  v  v  v  t       v: of a medium, written over those of its placeholders

The embeddings of a step are laid into a buffer before the layers run, so that a recorded step stays what it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from vllm import ops
from vllm.layers.step import Step
from vllm.messages import Media


class Tower(Protocol):
    """What turns media into embeddings."""

    width: int
    """Of an embedding"""

    @property
    def num_bytes(self) -> int:
        """The memory that its weights take."""

    def encode(self, media: Media) -> list[Tensor]:
        """Return a medium's embeddings, then what is to be added after each of the first layers.  -> [n, D] each"""

    def positions(self, token_ids: list[int], media: list[Media]) -> tuple[Tensor, int]:
        """Return the positions of a prompt's tokens in time, height and width, and what is added to later ones' index.

        -> [3, n] int64
        """


@runtime_checkable
class Attended(Protocol):
    """A tower whose states layers attend to."""

    def look(self, media: Media) -> tuple[Tensor, Tensor]:
        """Return a picture's states, and which of them only fill it up.  -> [n, D], [n] bool"""


@dataclass(frozen=True, slots=True)
class Seeing:
    """What a model sees with."""

    tower: Tower
    num_deep: int
    """After how many layers more of what the tower saw is added"""
    whole: bool
    """The tokens of a medium see each other."""
    across: bool = False
    """So do those of all of a prompt's media."""


@dataclass(frozen=True, slots=True)
class Places:
    """What of a medium belongs into a step."""

    rows: Tensor
    """[n] which tokens of the step"""
    embeddings: Sequence[Tensor]
    """[n, D] each: theirs, then what is to be added after each of the first layers"""


class MediaInput(nn.Module):
    """Embeddings of tokens, and in their places those of media.  -> [T, D]"""

    def __init__(self, tokens: nn.Module, num_deep: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.num_deep = num_deep
        self.deep: list[Tensor] = []
        """[T, D] each: what is added after each of the first layers"""
        self.embeddings = torch.empty(0)
        self._is_clean = True

    def make_room(self, max_tokens: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        """Be ready for steps of up to so many tokens."""
        self.embeddings, *self.deep = (
            torch.zeros(max_tokens, width, dtype=dtype, device=device) for _ in range(1 + self.num_deep)
        )

    def fill(self, step: Step, places: Sequence[Places]) -> None:
        """Take the tokens of a step, and what belongs to media."""
        for place in places:  # what stands in a medium's place need be no token of the vocabulary
            step.token_ids[place.rows] = 0
        embeddings = self.embeddings[: len(step.token_ids)]
        embeddings.copy_(self.tokens(step))
        if not self._is_clean:
            for deep in self.deep:
                deep.zero_()
        self._is_clean = not places
        for place in places:
            first, *others = place.embeddings
            embeddings[place.rows] = first
            for deep, other in zip(self.deep, others, strict=True):
                deep[place.rows] = other

    def forward(self, step: Step) -> Tensor:
        return self.embeddings[: len(step.token_ids)]


class Deepened(nn.Module):
    """A block, and what the tower saw beside: added to what comes out of it.  [T, D] -> [T, D]"""

    def __init__(self, block: nn.Module, entry: MediaInput, index: int) -> None:
        super().__init__()
        self.block = block
        self.index = index
        self._entry = [entry]  # not a module of this one

    def forward(self, x: Tensor, step: Step) -> Tensor:
        return ops.add(self.block(x, step), self._entry[0].deep[self.index][: len(x)])
