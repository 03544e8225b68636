"""Small operations on rows."""

from __future__ import annotations

import torch
from torch import Tensor

from vllm.ops import native

_CHUNK = 1 << 20  # elements that are looked at together: 4 MB in float32, which stay in a core's cache


def add(x: Tensor, y: Tensor) -> Tensor:
    """Add two tensors of one shape."""
    return x + y


def shift(positions: Tensor, offset: int) -> Tensor:
    """Add a number to each position.  [T] -> [T]"""
    return positions + offset if offset else positions


def softcap(x: Tensor, cap: float) -> Tensor:
    """Return cap · tanh(x / cap): nearly x where it is small, never beyond cap."""
    return cap * torch.tanh(x / cap)


def all_finite(x: Tensor) -> bool:
    """Whether no value is NaN or infinite, found without a second tensor of its size.

    Without the kernels: a sum is much cheaper than a test of every value, and is not finite if one of its terms isn't; where it overflows
    without such a term, the values are looked at one by one.
    """
    if x.is_contiguous() and native.takes(x.reshape(-1)):
        return native.library().all_finite(x.data_ptr(), x.numel(), native.TYPES[x.dtype])
    rows = x.reshape(1) if x.dim() == 0 else x
    rows_at_once = max(1, _CHUNK * rows.shape[0] // max(1, rows.numel()))
    for chunk in rows.split(rows_at_once):
        if not chunk.sum(dtype=torch.float32).isfinite() and not chunk.isfinite().all():
            return False
    return True
