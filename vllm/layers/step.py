"""The device's side of a batch: everything a layer may need in one forward pass, as one argument.

T tokens of R rows lie one after another, unpadded; row r owns tokens [first[r], first[r] + count[r]).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Set
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from vllm.messages import Media
from vllm.ops.attention import AttentionBackend, CachePlan


@dataclass(frozen=True, slots=True)
class StepRow:
    """A row of a step, on the host."""

    slot: int
    first: int
    """Its first token in the step"""
    start: int
    """That token's position in its sequence"""
    count: int
    num_prompt: int
    wants_all: bool
    """The results of all its tokens are wanted, not of the last one alone."""
    media: list[Media] = field(default_factory=list)
    """Of its prompt"""


class Rows:
    """The rows of a step, for modules that keep something of a sequence by themselves."""

    def __init__(self) -> None:
        self._rows: list[StepRow] = []
        self._living: Collection[int] = ()

    def place(self, rows: list[StepRow], living: Collection[int]) -> None:
        """Take note of a step's rows, and of all slots that a sequence holds."""
        self._rows, self._living = rows, living

    def each(self) -> Iterator[StepRow]:
        return iter(self._rows)

    def living(self) -> Set[int]:
        """Return the slots that a sequence holds."""
        return set(self._living)


@dataclass(slots=True)
class Step:
    """T tokens of R rows on the device."""

    token_ids: Tensor
    """[T] int64"""
    token_types: Tensor
    """[T] int64: which of a pair of texts a token is of; 0 where there is no pair"""
    positions: Tensor
    """[T] int64"""
    plans: tuple[CachePlan, ...]
    """One per cache group, placed for this step."""
    caches: tuple[Any, ...]
    """One per layer that has a cache, in call order."""
    group_of: tuple[int, ...]
    """The cache group of each of them."""
    attention: AttentionBackend
    """Made the caches and plans of keys and values."""
    rows: Rows = field(default_factory=Rows)

    def first(self, num_tokens: int) -> Step:
        """Return the step's first tokens as a step."""
        return replace(
            self,
            token_ids=self.token_ids[:num_tokens],
            token_types=self.token_types[:num_tokens],
            positions=self.positions[:num_tokens],
        )
