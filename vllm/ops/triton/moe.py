"""A mixture of experts on a GPU: what tokens chose is sorted by expert, and each expert multiplies its own tokens in tiles.

    choices [T K] ── sort ──▶ e0 e0 e0 | e1 | e3 e3 …  ──▶ tiles of one expert each ──▶ back in the order of tokens, added up

How many tiles there are is known on the device alone; the grid has as many as there can be, and programs without a tile
end at once.  So nothing waits for the host, and a step can be recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from vllm.ops.activations import CODES, Clamp
from vllm.ops.matrix import Matrix, MatrixShape
from vllm.ops.triton.activations import activate
from vllm.ops.triton.matrix import GpuMatrix


class ExpertMatrices(nn.ModuleList):
    """Matrices of one shape that lie in one tensor."""

    def __init__(self, count: int, shape: MatrixShape) -> None:
        stacked = torch.empty(count, shape.rows, shape.width, dtype=shape.dtype, device=shape.device)
        biases = torch.empty(count, shape.rows, dtype=shape.dtype, device=shape.device) if shape.bias else None
        super().__init__(
            _expert(shape, stacked[index], None if biases is None else biases[index]) for index in range(count)
        )
        self.stacked = stacked
        """[X, N, D]"""
        self.biases = biases
        """[X, N]"""


def _expert(shape: MatrixShape, weight: Tensor, bias: Tensor | None) -> GpuMatrix:
    matrix = GpuMatrix(replace(shape, rows=0))
    matrix.shape, matrix.num_bytes = shape, weight.nbytes + (0 if bias is None else bias.nbytes)
    matrix.weight = nn.Parameter(weight, requires_grad=False)
    matrix.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    return matrix


def moe(
    x: Tensor,
    weights: Tensor,
    ids: Tensor,
    gate_up: Sequence[Matrix],
    down: Sequence[Matrix],
    *,
    activation: str,
    clamp: Clamp | None = None,
) -> Tensor:
    """Add up what each token's experts make of it.  [T, D], [T, K], [T, K], X of [2 I, D] or [I, D], X of [D, I] -> [T, D]"""
    assert isinstance(gate_up, ExpertMatrices) and isinstance(down, ExpertMatrices)
    (tokens, chosen), (experts, width, inner) = ids.shape, down.stacked.shape
    flat = ids.reshape(-1)
    order = flat.argsort(stable=True)
    counts = torch.zeros(experts, dtype=torch.int64, device=x.device).scatter_add_(0, flat, torch.ones_like(flat))
    rows = max(16, min(128, triton.next_power_of_2(triton.cdiv(tokens * chosen, experts))))
    tiles = min(tokens * chosen, triton.cdiv(tokens * chosen, rows) + experts)
    ends = ((counts + rows - 1) // rows).cumsum(0)
    owner = torch.searchsorted(ends, torch.arange(tiles, device=x.device), right=True)
    last = counts.cumsum(0)
    hidden = torch.empty(tokens * chosen, inner, dtype=x.dtype, device=x.device)
    found = torch.empty(tokens * chosen, width, dtype=x.dtype, device=x.device)
    scale = weights.reshape(-1)
    columns = 64
    has_gates = gate_up.stacked.shape[1] > inner
    for source, matrices, target, is_last in ((x, gate_up, hidden, False), (hidden, down, found, True)):
        length, gated, biases = target.shape[1], has_gates and not is_last, matrices.biases
        _tile[(tiles, triton.cdiv(length, columns))](
            source, matrices.stacked, matrices.stacked if biases is None else biases, target, order, owner, ends, counts,
            last, scale, experts, length, source.shape[1], source.stride(0),
            clamp.limit if clamp else 0.0, clamp.offset if clamp else 0.0,
            K=chosen, M=rows, N=columns, STEP=64, FIRST=not is_last, GATED=gated, KIND=0 if is_last else CODES[activation],
            BIAS=biases is not None, CLAMP=clamp is not None, PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
            num_warps=4 if rows <= 64 else 8, num_stages=3,
        )  # fmt: skip
    return found.view(tokens, chosen, width).sum(dim=1, dtype=torch.float32).to(x.dtype)


@triton.jit
def _tile(
    x, weight, bias, out, order, owner, ends, counts, last, scale, experts, length, width, x_row, limit, offset,
    K: tl.constexpr, M: tl.constexpr, N: tl.constexpr, STEP: tl.constexpr, FIRST: tl.constexpr, GATED: tl.constexpr,
    KIND: tl.constexpr, BIAS: tl.constexpr, CLAMP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Multiply a tile of one expert's rows.  The first time rows of x are gathered by token; then rows lie in the order of
    experts, and results are weighted and go back to where their choices are."""
    tile = tl.program_id(0)
    expert = tl.load(owner + tile)
    if expert >= experts:
        return
    count, end = tl.load(counts + expert), tl.load(last + expert)
    number = tile - (tl.load(ends + expert) - (count + M - 1) // M)
    row = end - count + number * M + tl.arange(0, M)
    alive = row < end
    choice = tl.load(order + row, alive, 0)
    source = choice // K if FIRST else row
    n = tl.program_id(1) * N + tl.arange(0, N)
    inside = n < length
    matrix = weight + expert * (2 * length if GATED else length).to(tl.int64) * width
    total = tl.zeros([M, N], tl.float32)
    gate = tl.zeros([M, N], tl.float32)
    for start in tl.range(0, width, STEP):
        k = start + tl.arange(0, STEP)
        values = tl.load(x + source[:, None] * x_row + k[None, :], alive[:, None] & (k < width)[None, :], 0.0)
        mask = (k < width)[:, None] & inside[None, :]
        if GATED:
            part = tl.load(matrix + n[None, :].to(tl.int64) * width + k[:, None], mask, 0.0)
            gate = tl.dot(values, part, gate, input_precision=PRECISION)
            part = tl.load(matrix + (length + n[None, :]).to(tl.int64) * width + k[:, None], mask, 0.0)
            total = tl.dot(values, part, total, input_precision=PRECISION)
        else:
            part = tl.load(matrix + n[None, :].to(tl.int64) * width + k[:, None], mask, 0.0)
            total = tl.dot(values, part, total, input_precision=PRECISION)
    if BIAS:
        own = bias + expert * (2 * length if GATED else length)
        if GATED:
            gate += tl.load(own + n, inside, 0.0).to(tl.float32)[None, :]
            own += length
        total += tl.load(own + n, inside, 0.0).to(tl.float32)[None, :]
    dtype: tl.constexpr = out.dtype.element_ty
    mask = alive[:, None] & inside[None, :]
    if FIRST:
        gate = gate.to(dtype).to(tl.float32)
        y = total.to(dtype).to(tl.float32)
        if CLAMP:
            y = activate(tl.minimum(gate, limit), KIND) * (tl.minimum(tl.maximum(y, -limit), limit) + offset)
        elif GATED:
            y = activate(gate, KIND).to(dtype).to(tl.float32) * y
        else:
            y = activate(y, KIND)
        tl.store(out + row[:, None] * length + n[None, :], y.to(dtype), mask)
    else:
        y = total.to(dtype).to(tl.float32) * tl.load(scale + choice, alive, 0.0)[:, None]
        tl.store(out + choice[:, None] * length + n[None, :], y.to(dtype), mask)
