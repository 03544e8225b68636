"""The device's side of a batch: everything a layer may need in one forward pass, as one argument.

T tokens of R rows lie one after another, unpadded; row r owns tokens [first[r], first[r] + count[r]).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(slots=True)
class Step:
    """T tokens of R rows on the device."""

    token_ids: Tensor
    """[T] int64"""
    positions: Tensor
    """[T] int64"""
    plans: tuple[Any, ...]
    """One per cache group, made by the attention backend from the group's Layout."""
    caches: tuple[Any, ...]
    """One per attention layer in call order; made by the attention backend."""
    group_of: tuple[int, ...]
    """The cache group of each attention layer."""
