"""Small operations on rows."""

from __future__ import annotations

import torch
from torch import Tensor

from vllm.ops.linear import linear

_CHUNK = 1 << 20  # elements that are looked at together: 4 MB in float32, which stay in a core's cache


def add(x: Tensor, y: Tensor) -> Tensor:
    """Add two tensors of one shape.  [T, D], [T, D] -> [T, D]"""
    return x + y


def multiply(x: Tensor, y: Tensor) -> Tensor:
    """Multiply two tensors of one shape, element by element.  [T, D], [T, D] -> [T, D]"""
    return x * y


def side_by_side(first: Tensor, *others: Tensor) -> Tensor:
    """Lay the rows of tensors side by side.  [T, A], [T, B], … -> [T, A + B + …]"""
    return torch.cat((first, *others), dim=1)


def gather(x: Tensor, ids: Tensor, scale: float = 1.0, offset: int = 0) -> Tensor:
    """Take rows ids + offset, times `scale`.  [V, D], [T] -> [T, D]"""
    found = torch.nn.functional.embedding(ids + offset if offset else ids, x)
    return found if scale == 1.0 else found * scale


def softcap(x: Tensor, cap: float) -> Tensor:
    """Return cap · tanh(x / cap): nearly x where it is small, never beyond cap."""
    return cap * torch.tanh(x / cap)


def all_finite(x: Tensor) -> bool:
    """Whether no value is NaN or infinite, found without a second tensor of its size.

    A sum is much cheaper than a test of every value, and is not finite if one of its terms isn't; where it overflows
    without such a term, the values are looked at one by one.
    """
    rows = x.reshape(1) if x.dim() == 0 else x
    rows_at_once = max(1, _CHUNK * rows.shape[0] // max(1, rows.numel()))
    for chunk in rows.split(rows_at_once):
        if not chunk.sum(dtype=torch.float32).isfinite() and not chunk.isfinite().all():
            return False
    return True


def mean(x: Tensor) -> Tensor:
    """Return each row's mean, added up in an order that depends on its length alone.  [T, D] float32 -> [T, 1]"""
    return linear(x, x.new_ones(1, x.shape[1])) / x.shape[1]
