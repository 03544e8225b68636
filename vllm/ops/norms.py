"""Normalisation over the last dimension, computed in float32 whatever the dtype."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float = 0.0, residual: Tensor | None = None) -> Tensor:
    """Divide by the root mean square, multiply with `offset + weight`, add the residual.  [..., D], [D] -> [..., D]

    Families differ in where a half-precision result is rounded: with an offset (gemma) after the multiplication, else
    before it.  https://arxiv.org/abs/1910.07467
    """
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    y = (wide * (offset + weight.float())).to(x.dtype) if offset else weight * wide.to(x.dtype)
    return y if residual is None else residual + y


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Bring each row to mean 0 and variance 1, then scale and shift.  [..., D], [D], [D] -> [..., D]"""
    weight = None if weight is None else weight.float()
    bias = None if bias is None else bias.float()
    return F.layer_norm(x.float(), x.shape[-1:], weight, bias, eps).to(x.dtype)
