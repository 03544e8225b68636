"""Weights are windows: what a module holds has places, and the places have names in the checkpoint.

qkv         ┌────────┐  ← "…q_proj.weight"
            │   q    │
            ├────────┤  ← "…k_proj.weight"
            │   k    │
            ├────────┤  ← "…v_proj.weight"
            │   v    │
            └────────┘
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Place(Protocol):
    """Where a tensor belongs."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def put(self, part: Tensor) -> None:
        """Take a tensor of this shape and dtype.  It may be kept as it is: nobody changes it afterwards."""


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """A tensor, or a view of one, that is copied to."""

    target: Tensor
    as_dtype: torch.dtype | None = None
    """What the tensor is rounded to before it is copied, where that isn't the target's own dtype."""

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.target.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.as_dtype or self.target.dtype

    def put(self, part: Tensor) -> None:
        self.target.copy_(part)


@dataclass(frozen=True, slots=True)
class Window:
    """A place for a checkpoint tensor, or for a part of one.

    `cut` turns the checkpoint's tensor into what belongs there (a slice, a transpose, a new order of heads); without it
    the tensor is taken as it is.  A tensor may fill several windows.
    """

    name: str
    place: Place
    cut: Callable[[Tensor], Tensor] | None = None
    optional: bool = False
    """The checkpoint may lack it; the place then keeps the value it was made with."""
