"""Squares of patches: neighbours made one, and squares laid side by side.

a b c d                                      1 2         1 1 2 2 /
e f g h   ──▶   abef  cdgh  …                3 4   ──▶   1 1 2 2 /   …
"""

from __future__ import annotations

import torch
from torch import Tensor


def shuffled(x: Tensor, joined: int) -> Tensor:
    """Join squares of `joined` by `joined` patches, row by row.  [N, S · S, E] -> [N, S · S / joined², joined² · E]"""
    side = round(x.shape[1] ** 0.5)
    rows = x.unflatten(1, (side // joined, joined, side // joined, joined))
    return rows.transpose(2, 3).flatten(3).flatten(1, 2)


def laid(squares: Tensor, rows: int, columns: int, end: Tensor) -> Tensor:
    """Lay squares side by side, with an end for each row of what is in them.  [rows · columns, S · S, E], [E] -> [n, E]"""
    side = round(squares.shape[1] ** 0.5)
    whole = squares.view(rows, columns, side, side, -1).transpose(1, 2).reshape(rows * side, columns * side, -1)
    return torch.cat((whole, end.expand(len(whole), 1, -1)), dim=1).flatten(0, 1)
