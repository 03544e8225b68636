"""A product with a matrix of each head's own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_TILE = 32
"""Tokens that are multiplied at a time on a processor, whose kernels add up in an order that depends on how many there are"""


def per_head(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply each head's vectors with its matrix.  [T, H, A], [H, A, B] -> [T, H, B]"""
    if x.is_cuda:
        return torch.bmm(x.transpose(0, 1), weight).transpose(0, 1)
    tokens = x.shape[0]
    padded = F.pad(x, (0, 0, 0, 0, 0, -tokens % _TILE)).transpose(0, 1)
    tiles = [torch.bmm(tile, weight) for tile in padded.split(_TILE, dim=1)]
    return torch.cat(tiles, dim=1)[:, :tokens].transpose(0, 1)
