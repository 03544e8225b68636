"""One function per operation.  Layers import from here and never ask which device they run on.

Every operation here is batch invariant: what it computes for a token is the same to the last bit whatever else is in
the step.  The plain-torch versions (`linear`, `norms`, `activations`, `rotary`, `moe`, `attention_torch`) are the
truth of the tests and the fallback on any device.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from vllm.errors import ConfigError
from vllm.kv_cache.spec import CacheSpec
from vllm.logging import get_logger
from vllm.ops import native, norms, rows
from vllm.ops import rotary as rotary_torch
from vllm.ops.activations import ACTIVATIONS
from vllm.ops.attention import AttentionBackend
from vllm.ops.attention_torch import TorchAttention
from vllm.ops.matrix import DenseMatrix, Matrix, MatrixShape
from vllm.ops.moe import moe, route
from vllm.ops.native import matrix as native_matrix
from vllm.ops.native import program as native_program
from vllm.ops.native import rows as native_rows
from vllm.ops.native.attention import NativeAttention
from vllm.ops.native.program import Program

__all__ = [
    "ACTIVATIONS",
    "add",
    "all_finite",
    "attention_backend",
    "gather",
    "layer_norm",
    "matrix",
    "moe",
    "record",
    "rms_norm",
    "rotary",
    "route",
    "softcap",
]


logger = get_logger(__name__)

Operation = TypeVar("Operation", bound=Callable[..., Any])


def _either(reference: Operation, kernel: Operation) -> Operation:
    """Return the operation that runs the kernel where its first argument is one for kernels."""

    @functools.wraps(reference)
    def operation(x: Any, *args: Any, **options: Any) -> Any:
        return (kernel if native.takes(x) else reference)(x, *args, **options)

    return operation  # type: ignore[return-value]


add = _either(rows.add, native_rows.add)
all_finite = _either(rows.all_finite, native_rows.all_finite)
gather = _either(rows.gather, native_rows.gather)
layer_norm = _either(norms.layer_norm, native_rows.layer_norm)
rms_norm = _either(norms.rms_norm, native_rows.rms_norm)
rotary = _either(rotary_torch.rotary, native_rows.rotary)
softcap = _either(rows.softcap, native_rows.softcap)


def attention_backend(
    specs: Sequence[CacheSpec], dtype: torch.dtype, device: torch.device, block_size: int, quantized: bool = False
) -> AttentionBackend:
    """Return the best attention backend that can serve such layers of a model of `dtype`.

    `quantized`: the cache holds 8-bit integers.  Raises ConfigError if none can.
    """
    backends: list[AttentionBackend] = [TorchAttention(device)]
    if device.type == "cpu" and native.library() is not None:
        backends.insert(0, NativeAttention())
    reasons = []
    for backend in backends:
        found = [reason for spec in specs if (reason := backend.refuses(spec, dtype, block_size, quantized))]
        if not found:
            return backend
        reasons.append(found[0])
    raise ConfigError("; ".join(reasons))


def matrix(shape: MatrixShape) -> Matrix:
    """Return the best kind of matrix for a shape.  Raises ConfigError if it can't be quantized as it asks."""
    reason = "it is for processors" if shape.device.type != "cpu" else None
    if reason is None and native.library() is None:
        reason = "it needs the native kernels, which are not there"
    reason = reason or native_matrix.refuses(shape)
    if reason is None:
        return native_matrix.NativeMatrix(shape)
    if shape.format is not None:
        raise ConfigError(f"quantization={shape.format!r} can't be used: {reason}")
    return DenseMatrix(shape)


def record(function: Callable[[], Tensor], device: torch.device) -> Program | None:
    """Record a computation, to be run with one call; None if something in it is no kernel.

    The tensors that it reads must keep their places, and have as many rows as there can be.
    """
    if device.type != "cpu" or native.library() is None:
        return None
    try:
        return native_program.record(function)
    except native_program.NotRecordable as reason:
        logger.info("steps are not recorded: %s", reason)
        return None
