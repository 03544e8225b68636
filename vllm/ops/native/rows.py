"""What happens to rows between products, with the native kernels.

Each function is its namesake in vllm/ops with one rounding, at the end, where that has several; norms round as theirs do.
Tensors are float32 or bfloat16 and neighbours in their last dimension.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vllm.ops.memory import empty
from vllm.ops.native import TYPES, address, library


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float = 0.0, residual: Tensor | None = None) -> Tensor:
    """Divide by the root mean square, multiply with `offset + weight`, add the residual.  [T, D] or [T, H, E]"""
    return _norm(library().rms_norm, x, weight, None, eps, offset, residual)


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Bring each row to mean 0 and variance 1, then scale and shift.  [T, D] or [T, H, E]"""
    return _norm(library().layer_norm, x, weight, bias, eps, 0.0, None)


def rotary(
    q: Tensor, k: Tensor, cos_sin: Tensor, positions: Tensor, interleaved: bool = False
) -> tuple[Tensor, Tensor]:
    """Rotate the first `rotary_dim` elements of each head, in place.  [T, H, E], [T, G, E], [P, rotary_dim], [T]"""
    assert cos_sin.dtype == torch.float32 and cos_sin.is_contiguous() and positions.is_contiguous()
    assert _side_by_side(q) and _side_by_side(k)
    library().rotary(
        len(q),
        address(q),
        address(k),
        address(cos_sin),
        address(positions),
        q.stride(0),
        k.stride(0),
        q.shape[1],
        k.shape[1],
        q.shape[2],
        cos_sin.shape[1],
        int(interleaved),
        TYPES[q.dtype],
    )
    return q, k


def add(x: Tensor, other: Tensor) -> Tensor:
    """Add two tensors of one shape.  [T, D], [T, D] -> [T, D]"""
    return _pairwise(library().add, x, other)


def multiply(x: Tensor, other: Tensor) -> Tensor:
    """Multiply two tensors of one shape, element by element.  [T, D], [T, D] -> [T, D]"""
    return _pairwise(library().multiply, x, other)


def side_by_side(first: Tensor, *others: Tensor) -> Tensor:
    """Lay the rows of tensors side by side.  [T, A], [T, B], … -> [T, A + B + …]"""
    parts = (first, *others)
    y = empty(len(first), sum(part.shape[1] for part in parts), dtype=first.dtype)
    begin = 0
    for part in parts:
        to = y[:, begin : begin + part.shape[1]]
        library().copy(
            len(part), address(part), address(to), part.stride(0), y.stride(0), part.shape[1], TYPES[y.dtype]
        )
        begin += part.shape[1]
    return y


def softcap(x: Tensor, cap: float) -> Tensor:
    """Make x cap · tanh(x / cap), in place.  [T, D] -> [T, D]"""
    library().softcap(len(x), address(x), address(x), x.stride(0), x.stride(0), x.shape[1], cap, TYPES[x.dtype])
    return x


def gather(table: Tensor, ids: Tensor, scale: float = 1.0, offset: int = 0) -> Tensor:
    """Return the rows `ids + offset` of a table, each times `scale`.  [V, D], [T] -> [T, D]"""
    assert ids.dtype == torch.int64 and ids.is_contiguous()
    y = empty(len(ids), table.shape[1], dtype=table.dtype)
    addresses = (address(table), address(y), address(ids))
    strides = (table.stride(0), y.stride(0))
    library().gather(len(ids), *addresses, offset, *strides, table.shape[1], scale, TYPES[table.dtype])
    return y


def _pairwise(kernel: Callable[..., None], x: Tensor, other: Tensor) -> Tensor:
    y = empty(*x.shape, dtype=x.dtype)
    addresses = (address(x), address(other), address(y))
    kernel(len(x), *addresses, x.stride(0), other.stride(0), y.stride(0), x.shape[1], TYPES[x.dtype])
    return y


def _norm(
    kernel: Callable[..., None],
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    offset: float,
    residual: Tensor | None,
) -> Tensor:
    assert x.dim() == 2 or _side_by_side(x)
    y = empty(*x.shape, dtype=x.dtype)
    kernel(
        len(x),
        address(x),
        address(y),
        address(residual),
        address(weight),
        address(bias),
        x.stride(0),
        y.stride(0),
        0 if residual is None else residual.stride(0),
        1 if x.dim() == 2 else x.shape[1],
        x.shape[-1],
        eps,
        offset,
        TYPES[x.dtype],
    )
    return y


def all_finite(x: Tensor) -> bool:
    """Whether no value is NaN or infinite."""
    x = x.contiguous()
    return library().all_finite(address(x), x.numel(), TYPES[x.dtype])


def _side_by_side(x: Tensor) -> bool:
    """Whether the heads of a token follow each other without a gap.  [T, H, E]"""
    return x.stride(2) == 1 and x.stride(1) == x.shape[2]
