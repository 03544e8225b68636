"""The device's side of a batch: everything a layer may need in one forward pass, as one argument.

T tokens of R rows lie one after another, unpadded; row r owns tokens [first[r], first[r] + count[r]).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from vllm.ops.attention import AttentionBackend, AttentionPlan


@dataclass(slots=True)
class Step:
    """T tokens of R rows on the device."""

    token_ids: Tensor
    """[T] int64"""
    token_types: Tensor
    """[T] int64: which of a pair of texts a token is of; 0 where there is no pair"""
    positions: Tensor
    """[T] int64"""
    plans: tuple[AttentionPlan, ...]
    """One per cache group, placed for this step."""
    caches: tuple[Any, ...]
    """One per attention layer in call order."""
    group_of: tuple[int, ...]
    """The cache group of each attention layer."""
    attention: AttentionBackend
    """Made the caches and the plans."""

    def first(self, num_tokens: int) -> Step:
        """Return the step's first tokens as a step."""
        return replace(
            self,
            token_ids=self.token_ids[:num_tokens],
            token_types=self.token_types[:num_tokens],
            positions=self.positions[:num_tokens],
        )
