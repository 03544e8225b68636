"""Products with a weight matrix."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vllm.device import has_tiles

_FLOAT32_ROWS = 16
_TILE_ROWS = 32
_HALF_ROWS, _HALF_PRODUCTS = 2, 16**3


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply each row with a matrix and add a bias.  [T, D], [N, D], [N] -> [T, N]

    Sizes for which torch's kernels on the CPU add up in an order that depends on T are padded with zeros, as measured:
    in float32 fewer than 12 rows, for N = 1 any remainder of rows by 4, for small N any remainder of D by 4; in half
    precision a single row (if D is above 1024) and at most 16³ multiplications.  On processors with tiles (AMX) the order in
    half precision depends on T in too many ways, so that all products there are of the same number of rows.  A GPU is given
    its rows as they are.
    """
    if x.device.type != "cpu":
        return F.linear(x, weight, bias)
    rows = x.shape[0]
    if x.dtype != torch.float32 and has_tiles():
        padded = F.pad(x, (0, 0, 0, -rows % _TILE_ROWS))
        return torch.cat([F.linear(tile, weight, bias) for tile in padded.split(_TILE_ROWS)])[:rows]
    if x.dtype == torch.float32:
        spare_rows = max(_FLOAT32_ROWS - rows, -rows % 4)
        if spare := -x.shape[1] % 4:
            x, weight = F.pad(x, (0, spare)), F.pad(weight, (0, spare))
    else:
        spare_rows = max(0, _HALF_ROWS - rows, _HALF_PRODUCTS // weight.numel() + 1 - rows)
    if not spare_rows:
        return F.linear(x, weight, bias)
    return F.linear(F.pad(x, (0, 0, 0, spare_rows)), weight, bias)[:rows]
