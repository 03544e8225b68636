"""Rotary position embedding: turn pairs of a head's elements by an angle that grows with the position."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary(
    q: Tensor, k: Tensor, cos_sin: Tensor, positions: Tensor, interleaved: bool = False
) -> tuple[Tensor, Tensor]:
    """Rotate the first `rotary_dim` elements of each head.  [T, H, E], [T, G, E], [P, rotary_dim], [T] -> q, k

    A row of `cos_sin` holds the cosines, then the sines of one position.  Pairs are (i, i + rotary_dim / 2), or
    (2 i, 2 i + 1) if interleaved.  Where a kernel does it, q and k themselves are changed.  https://arxiv.org/abs/2104.09864
    """
    cos, sin = cos_sin[positions].to(q.dtype).unsqueeze(1).chunk(2, dim=-1)  # each [T, 1, rotary_dim / 2]
    turn = _turn_neighbours if interleaved else _turn_halves
    return turn(q, cos, sin), turn(k, cos, sin)


def _turn_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), dim=-1)


def _turn_neighbours(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    width = 2 * cos.shape[-1]
    a, b, rest = x[..., 0:width:2], x[..., 1:width:2], x[..., width:]
    turned = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)
    return torch.cat((turned, rest), dim=-1)
