"""One function per operation.  Layers import from here and never ask which device they run on.

Every operation here is batch invariant: what it computes for a token is the same to the last bit whatever else is in
the step.  The plain-torch versions (`linear`, `norms`, `activations`, `rotary`, `moe`, `attention_torch`) are the
truth of the tests and the fallback on any device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vllm.errors import ConfigError
from vllm.ops import native
from vllm.ops.activations import ACTIVATIONS
from vllm.ops.attention import AttentionBackend
from vllm.ops.attention_torch import TorchAttention
from vllm.ops.matrix import DenseMatrix, Matrix, MatrixShape
from vllm.ops.moe import moe, route
from vllm.ops.native.matrix import NativeMatrix, refuses
from vllm.ops.norms import layer_norm, rms_norm
from vllm.ops.rotary import rotary
from vllm.ops.rows import add, all_finite, shift, softcap

__all__ = [
    "ACTIVATIONS",
    "add",
    "all_finite",
    "attention_backend",
    "layer_norm",
    "matrix",
    "moe",
    "rms_norm",
    "rotary",
    "route",
    "shift",
    "softcap",
]


def attention_backend(device: torch.device) -> AttentionBackend:
    """Return the best attention backend of a device.  It keeps no state, so it may be asked for in several places."""
    return TorchAttention(device)


def matrix(shape: MatrixShape) -> Matrix:
    """Return the best kind of matrix for a shape.  Raises ConfigError if it can't be quantized as it asks."""
    reason = "it is for processors" if shape.device.type != "cpu" else None
    if reason is None and native.library() is None:
        reason = "it needs the native kernels, which are not there"
    reason = reason or refuses(shape)
    if reason is None:
        return NativeMatrix(shape)
    if shape.format is not None:
        raise ConfigError(f"quantization={shape.format!r} can't be used: {reason}")
    return DenseMatrix(shape)
