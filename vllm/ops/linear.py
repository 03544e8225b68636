"""Products with a weight matrix, and the lookup of rows in one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_FLOAT32_ROWS = 16
"""On the CPU, float32 products of fewer than 12 rows run through kernels that add up in another order."""
_HALF_PRODUCTS = 16**3
"""On the CPU, half-precision products of at most so many multiplications do the same."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply each row with a matrix and add a bias.  [T, D], [N, D], [N] -> [T, N]"""
    rows = x.shape[0]
    least = _FLOAT32_ROWS if x.dtype == torch.float32 else _HALF_PRODUCTS // weight.numel() + 1
    if rows >= least:
        return F.linear(x, weight, bias)
    return F.linear(F.pad(x, (0, 0, 0, least - rows)), weight, bias)[:rows]


def embedding(ids: Tensor, table: Tensor) -> Tensor:
    """Look rows up.  [T], [V, D] -> [T, D]"""
    return F.embedding(ids, table)
