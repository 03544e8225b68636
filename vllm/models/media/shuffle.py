"""Neighbouring patches of a square picture as one, their states side by side.

a b c d
e f g h   ──▶   abef  cdgh  …
"""

from __future__ import annotations

from torch import Tensor


def shuffled(x: Tensor, joined: int) -> Tensor:
    """Join squares of `joined` by `joined` patches, row by row.  [N, S · S, E] -> [N, S · S / joined², joined² · E]"""
    side = round(x.shape[1] ** 0.5)
    rows = x.unflatten(1, (side // joined, joined, side // joined, joined))
    return rows.transpose(2, 3).flatten(3).flatten(1, 2)
