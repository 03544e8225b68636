"""Rows of weights in few bits, in plain torch: what the kernels of a GPU hold, and what their results are compared with.

int8   whole numbers of -127 … 127 and a scale per row
fp8    e4m3 numbers up to 448 and a scale per row
int4   whole numbers of -8 … 7 and a scale per row and 32 columns, so that the group's farthest number is -8
"""

from __future__ import annotations

import torch
from torch import Tensor

GROUP = 32
"""Columns that share a scale of int4."""
FLOAT8 = torch.float8_e4m3fn
_FARTHEST = {"int8": 127.0, "fp8": 448.0}
_LEAST = 1e-30  # a scale of numbers that are all 0


def quantize(rows: Tensor, format: str) -> tuple[Tensor, Tensor]:
    """Round rows.  [N, D] -> numbers [N, D], scales [N] float32; of int4 [N, D / 32] bfloat16, D a multiple of 32"""
    wide = rows.float()
    if format == "int4":
        return _quantize_groups(wide)
    scales = (wide.abs().amax(dim=1) / _FARTHEST[format]).clamp_min(_LEAST)
    scaled = wide / scales[:, None]
    return (scaled.round().to(torch.int8) if format == "int8" else scaled.to(FLOAT8)), scales


def _quantize_groups(wide: Tensor) -> tuple[Tensor, Tensor]:
    grouped = wide.unflatten(1, (-1, GROUP))
    farthest = grouped.gather(2, grouped.abs().argmax(dim=2, keepdim=True))
    scales = (farthest / -8).to(torch.bfloat16)
    scales = torch.where(scales.abs() < _LEAST, _LEAST, scales)
    numbers = (grouped / scales.float()).round().clamp(-8, 7).to(torch.int8)
    return numbers.flatten(1), scales.squeeze(2)


def dequantize(numbers: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what the rounded rows stand for.  [N, D] -> [N, D]"""
    wide = numbers.float().unflatten(1, (1 if scales.dim() == 1 else scales.shape[1], -1))
    return (wide * scales.float().reshape(len(numbers), -1, 1)).flatten(1).to(dtype)
