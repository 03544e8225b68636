"""MXFP4: rows of numbers of four bits, 32 of which share a power of two.
https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf

    blocks   [rows, width / 32, 16]   two numbers a byte, the first in the low half
    scales   [rows, width / 32]       exponents, plus 127

The two are tensors of their own in a checkpoint.  What comes first waits for the other, as it lies in the file; then rows are
unpacked into the place that is theirs, in its dtype.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vllm.errors import ModelError
from vllm.weights import Place

SHARED = 32
"""Numbers that share a scale"""
_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_BIAS, _NO_NUMBER = 127, 255


def unpack(blocks: Tensor, scales: Tensor) -> Tensor:
    """Return the numbers.  [N, G, 16] uint8, [N, G] uint8 -> [N, 32 G] float32"""
    numbers = torch.tensor([*_MAGNITUDES, *(-size for size in _MAGNITUDES)], device=blocks.device)
    pairs = torch.stack((numbers.repeat(16), numbers.repeat_interleave(16)), dim=-1)  # of each byte
    found = pairs[blocks.int()].flatten(2)  # [N, G, 32]
    return torch.ldexp(found, scales.int().unsqueeze(-1) - _BIAS).flatten(1)


class Unpacked:
    """A place for rows that come in two tensors."""

    def __init__(self, name: str, target: Place) -> None:
        """`name` is that of the rows, in messages."""
        rows, width = target.shape
        if width % SHARED:
            raise ModelError(
                f"{name}: MXFP4 shares a scale among {SHARED} numbers, which rows of {width} can't be cut to"
            )
        self._name, self._target = name, target
        self._parts: dict[int, Tensor] = {}
        self.blocks = _Half(self, 0, (rows, width // SHARED, SHARED // 2))
        self.scales = _Half(self, 1, (rows, width // SHARED))

    def take(self, which: int, part: Tensor) -> None:
        self._parts[which] = part
        if len(self._parts) < 2:
            return
        blocks, scales = self._parts.pop(0), self._parts.pop(1)
        if (scales == _NO_NUMBER).any():
            raise ModelError(f"{self._name} has a scale that is no number: the checkpoint is damaged; fetch it again")
        rows = unpack(blocks, scales).to(self._target.dtype)
        if not torch.isfinite(rows).all():
            raise ModelError(
                f"{self._name} has values beyond the range of {self._target.dtype}; use dtype='bfloat16' or 'float32'"
            )
        self._target.put(rows)


@dataclass(frozen=True, slots=True)
class _Half:
    whole: Unpacked
    which: int
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.uint8

    def put(self, part: Tensor) -> None:
        self.whole.take(self.which, part)
