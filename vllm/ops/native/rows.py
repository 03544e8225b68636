"""What happens to rows between products, natively.  Signatures and results are those of the torch versions in `ops`."""

from __future__ import annotations

from torch import Tensor

from vllm.ops.memory import empty
from vllm.ops.native import TYPES, address, library


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float = 0.0, residual: Tensor | None = None) -> Tensor:
    return _norm(library().rms_norm, x, weight, None, eps, offset, residual)


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    return _norm(library().layer_norm, x, weight, bias, eps, 0.0, None)


def rotary(
    q: Tensor, k: Tensor, cos_sin: Tensor, positions: Tensor, interleaved: bool = False
) -> tuple[Tensor, Tensor]:
    """As `ops.rotary.rotary`, but q and k themselves are changed."""
    library().rotary(
        q.shape[0],
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


def add(x: Tensor, y: Tensor) -> Tensor:
    total = empty(*x.shape, dtype=x.dtype)
    width = x.shape[1]
    library().add(
        x.shape[0], address(x), address(y), address(total), x.stride(0), y.stride(0), width, width, TYPES[x.dtype]
    )
    return total


def softcap(x: Tensor, cap: float) -> Tensor:
    """As `ops.rows.softcap`, but x itself is changed."""
    rows, width = x.shape
    library().softcap(rows, address(x), address(x), x.stride(0), x.stride(0), width, cap, TYPES[x.dtype])
    return x


def gather(x: Tensor, ids: Tensor, scale: float = 1.0, offset: int = 0) -> Tensor:
    found = empty(len(ids), x.shape[1], dtype=x.dtype)
    library().gather(
        len(ids),
        address(x),
        address(found),
        address(ids),
        offset,
        x.stride(0),
        x.shape[1],
        x.shape[1],
        scale,
        TYPES[x.dtype],
    )
    return found


def all_finite(x: Tensor) -> bool:
    x = x.contiguous()
    return library().all_finite(address(x), x.numel(), TYPES[x.dtype])


def _norm(
    kernel: object,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    offset: float,
    residual: Tensor | None,
) -> Tensor:
    """Norm the last dimension.  [T, D] or [T, H, E], heads side by side"""
    y = empty(*x.shape, dtype=x.dtype)
    heads = x.shape[1] if x.dim() == 3 else 1
    kernel(  # type: ignore[operator]
        x.shape[0],
        address(x),
        address(y),
        address(residual),
        address(weight),
        address(bias),
        x.stride(0),
        y.stride(0),
        0 if residual is None else residual.stride(0),
        heads,
        x.shape[-1],
        eps,
        offset,
        TYPES[x.dtype],
    )
    return y
