"""Weights are windows: a module's parameter is one tensor, parts of which have names in the checkpoint.

qkv.weight  ┌────────┐  ← "…q_proj.weight"
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

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Window:
    """A place for a checkpoint tensor, or for a part of one.

    `target` is a view into a parameter.  `cut` turns the checkpoint's tensor into what belongs there (a slice, a
    transpose, a new order of heads); without it the tensor is taken as it is.  A tensor may fill several windows.
    """

    name: str
    target: Tensor
    cut: Callable[[Tensor], Tensor] | None = None
    optional: bool = False
    """The checkpoint may lack it; the target then keeps the value it was made with."""
