"""Products with a weight matrix, and the lookup of rows in one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_FLOAT32_ROWS = 16
"""On the CPU, float32 products of fewer than 12 rows run through kernels that add up in another order."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply each row with a matrix and add a bias.  [T, D], [N, D], [N] -> [T, N]"""
    rows = x.shape[0]
    if x.dtype != torch.float32 or rows >= _FLOAT32_ROWS:
        return F.linear(x, weight, bias)
    return F.linear(F.pad(x, (0, 0, 0, _FLOAT32_ROWS - rows)), weight, bias)[:rows]


def embedding(ids: Tensor, table: Tensor) -> Tensor:
    """Look rows up.  [T], [V, D] -> [T, D]"""
    return F.embedding(ids, table)
