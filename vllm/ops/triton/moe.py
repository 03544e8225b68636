"""A mixture of experts on a GPU: what tokens chose is sorted by expert, and each expert multiplies its own tokens in tiles.

    choices [T K] ── sort ──▶ e0 e0 e0 | e1 | e3 e3 …  ──▶ tiles of one expert each ──▶ back in the order of tokens, added up

How many tiles there are is known on the device alone; the grid has as many as there can be, and programs without a tile
end at once.  So nothing waits for the host, and a step can be recorded.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from vllm.ops.activations import CODES, Clamp
from vllm.ops.matrix import Matrix, MatrixShape
from vllm.ops.triton.activations import activate
from vllm.ops.triton.early import early, let_next_start, wait_for_last
from vllm.ops.triton.matrix import GpuMatrix

_MOST_SORTED = 4096
"""Choices that one program sorts; of more, what torch's sort takes is little beside the products."""
_CHOICES = {
    16: ((64, 128, 4, 3), (64, 64, 4, 3)),
    32: ((64, 64, 4, 3),),
    64: ((64, 64, 4, 3),),
    128: ((128, 64, 8, 4), (64, 64, 8, 3)),
}
"""Columns, elements at a time, warps and stages by rows, the fastest first.  On an H200, 128 experts of 768 by 2048, 8 of them chosen: a
token takes 41 µs, 64 tokens 0.30 ms, 93 % of the bandwidth of a copy, 8192 tokens 1.6 ms, half of the matrix rate."""


class _Plan(NamedTuple):
    """What tokens chose, sorted by expert, and cut into tiles of one expert each."""

    order: Tensor
    """[N] which choice comes where"""
    owner: Tensor
    """[tiles] each tile's expert; the number of experts where there is no tile"""
    ends: Tensor
    """[X] how many tiles there are up to the end of an expert's"""
    counts: Tensor
    """[X] how many choices it has"""
    last: Tensor
    """[X] how many choices there are up to the end of its"""


class Product(NamedTuple):
    """One of the two products of experts with their tokens."""

    x: Tensor
    """[T, D], or [T K, I] in the order of experts"""
    out: Tensor
    """[T K, …] in the order of experts, or in that of choices"""
    plan: _Plan
    weights: Tensor
    """[T K] of the choices, which the last product is multiplied with"""
    rows: int
    """Of a tile"""
    chosen: int
    """Experts of a token: K"""
    is_last: bool
    gated: bool
    activation: str
    clamp: Clamp | None

    @property
    def bounds(self) -> tuple[float, float]:
        """The limit and the offset of its clamp."""
        return (self.clamp.limit, self.clamp.offset) if self.clamp else (0.0, 0.0)

    @property
    def flags(self) -> dict[str, Any]:
        """What kernels must know when they are compiled, whatever holds the weights."""
        return {
            "K": self.chosen, "M": self.rows, "FIRST": not self.is_last, "GATED": self.gated,
            "KIND": 0 if self.is_last else CODES[self.activation], "CLAMP": 0 if self.clamp is None else 1 + self.clamp.behind,
            "PRECISION": "ieee" if self.x.dtype == torch.float32 else "tf32", **early(self.x.device),
        }  # fmt: skip


class Experts(nn.ModuleList):
    """Matrices of one shape, whose products are computed in tiles."""

    most_rows = 128
    """Of x in a tile"""

    def __init__(self, matrices: Iterable[Matrix], shape: MatrixShape) -> None:
        super().__init__(matrices)
        self.shape = shape

    def multiply(self, product: Product) -> None:
        """Multiply each expert's tokens with its matrix."""
        raise NotImplementedError


class ExpertMatrices(Experts):
    """Matrices that lie in one tensor."""

    def __init__(self, count: int, shape: MatrixShape) -> None:
        stacked = torch.empty(count, shape.rows, shape.width, dtype=shape.dtype, device=shape.device)
        biases = torch.empty(count, shape.rows, dtype=shape.dtype, device=shape.device) if shape.bias else None
        matrices = (_expert(shape, stacked[index], None if biases is None else biases[index]) for index in range(count))
        super().__init__(matrices, shape)
        self.stacked = stacked
        """[X, N, D]"""
        self.biases = biases
        """[X, N]"""

    def multiply(self, product: Product) -> None:
        x, out, plan, biases, length = product.x, product.out, product.plan, self.biases, product.out.shape[1]
        columns, step, warps, stages = _sizes(product.rows, product.gated, x)
        _tile[(len(plan.owner), triton.cdiv(length, columns))](
            x, self.stacked, self.stacked if biases is None else biases, out, *plan, product.weights, len(self), length,
            x.shape[1], x.stride(0), *product.bounds, N=columns, STEP=step, BIAS=biases is not None, **product.flags,
            num_warps=warps, num_stages=stages,
        )  # fmt: skip


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
    identities: bool = False,
) -> Tensor:
    """Add up what each token's experts make of it.  [T, D], [T, K], [T, K], X of [2 I, D] or [I, D], X of [D, I] -> [T, D]

    With `identities` an id behind the last expert's gives the token itself.
    """
    if identities:
        real = ids < len(down)
        kept = (weights * ~real).sum(dim=1, keepdim=True)
        y = moe(x, weights * real, ids * real, gate_up, down, activation=activation, clamp=clamp)
        return (y.float() + x.float() * kept).to(x.dtype)
    assert isinstance(gate_up, Experts) and isinstance(down, Experts)
    (tokens, chosen), width, inner = ids.shape, down.shape.rows, down.shape.width
    rows = _tile_rows(gate_up, tokens * chosen)
    plan = _sorted(ids.reshape(-1), len(down), rows)
    hidden = torch.empty(tokens * chosen, inner, dtype=x.dtype, device=x.device)
    found = torch.empty(tokens * chosen, width, dtype=x.dtype, device=x.device)
    around = plan, weights.reshape(-1), rows, chosen
    gate_up.multiply(Product(x, hidden, *around, False, gate_up.shape.rows > inner, activation, clamp))
    down.multiply(Product(hidden, found, *around, True, False, activation, clamp))
    return found.view(tokens, chosen, width).sum(dim=1, dtype=torch.float32).to(x.dtype)


def chosen_products(x: Tensor, weights: Tensor, ids: Tensor, matrices: Sequence[Matrix], *, activation: str) -> Tensor:
    """Add up what each token's matrices make of it, under an activation.  [T, D], [T, K], [T, K], X of [N, D] -> [T, N]"""
    assert isinstance(matrices, Experts)
    (tokens, chosen), length = ids.shape, matrices.shape.rows
    rows = _tile_rows(matrices, tokens * chosen)
    plan = _sorted(ids.reshape(-1), len(matrices), rows)
    found = torch.empty(tokens * chosen, length, dtype=x.dtype, device=x.device)
    matrices.multiply(Product(x, found, plan, weights.reshape(-1), rows, chosen, False, False, activation, None))
    back = torch.empty_like(found).index_copy_(0, plan.order.long(), found).view(tokens, chosen, length)
    return (back.float() * weights[..., None]).sum(dim=1).to(x.dtype)


def _tile_rows(experts: Experts, choices: int) -> int:
    """Return how many rows a tile has: about as many as an expert is chosen by."""
    return max(16, min(experts.most_rows, triton.next_power_of_2(triton.cdiv(choices, len(experts)))))


def _sizes(rows: int, gated: bool, x: Tensor) -> tuple[int, int, int, int]:
    """Return columns, elements at a time, warps and stages of tiles of some rows: the fastest that the device has room for."""
    room = shared_memory(x.device)
    fitting = [
        sizes
        for sizes in _CHOICES[rows]
        if (rows + sizes[0] * (2 if gated else 1)) * sizes[1] * sizes[3] * x.itemsize <= room
    ]
    return fitting[0] if fitting else _CHOICES[rows][-1]


@functools.cache
def shared_memory(device: torch.device) -> int:
    """Return the bytes of shared memory that a program can have."""
    if device.type != "cuda":
        return 1 << 30
    properties: Any = torch.cuda.get_device_properties(device)
    return int(properties.shared_memory_per_block_optin)


def _sorted(ids: Tensor, experts: int, rows: int) -> _Plan:
    """Sort choices by expert.  [N] -> tiles of at most `rows` each"""
    count = len(ids)
    tiles = min(count, triton.cdiv(count, rows) + experts)
    if count <= _MOST_SORTED:
        order, owner, *numbers = (
            torch.empty(size, dtype=torch.int32, device=ids.device)
            for size in (count, tiles, experts, experts, experts)
        )
        padded = max(16, triton.next_power_of_2(count))
        plan = _Plan(order, owner, *numbers)
        _sort[(1,)](
            ids, *plan, count, tiles, experts, M=rows, PADDED=padded, BINS=triton.next_power_of_2(experts + 1),
            TILES=triton.next_power_of_2(tiles), num_warps=min(16, max(4, padded // 128)), **early(ids.device),
        )  # fmt: skip
        return plan
    counts = torch.zeros(experts, dtype=torch.int64, device=ids.device).scatter_add_(0, ids, torch.ones_like(ids))
    ends = ((counts + rows - 1) // rows).cumsum(0)
    owner = torch.searchsorted(ends, torch.arange(tiles, device=ids.device), right=True)
    return _Plan(ids.argsort(stable=True), owner, ends, counts, counts.cumsum(0))


@triton.jit
def _sort(
    ids, order, owner, ends, counts, last, count, tiles, experts,
    M: tl.constexpr, PADDED: tl.constexpr, BINS: tl.constexpr, TILES: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Sort choices by expert and cut them into tiles, in one program."""
    let_next_start(EARLY)
    wait_for_last(EARLY)
    place, x, tile = tl.arange(0, PADDED), tl.arange(0, BINS), tl.arange(0, TILES)
    chosen = tl.load(ids + place, place < count, experts).to(tl.int32)
    keys = tl.sort(chosen * PADDED + place)
    known = tl.where(x < experts, tl.histogram(chosen, BINS), 0)
    tl.store(order + place, keys % PADDED, place < count)
    tl.store(counts + x, known, x < experts)
    tl.store(last + x, tl.cumsum(known, 0), x < experts)
    tl.store(ends + x, tl.cumsum((known + M - 1) // M, 0), x < experts)
    tl.store(owner + tile, tl.zeros([TILES], tl.int32) + experts, tile < tiles)
    tl.debug_barrier()  # what one thread has written is read by others
    expert = keys // PADDED
    alive = place < count
    own = tl.load(counts + expert, alive, 0)
    rank = place - (tl.load(last + expert, alive, 0) - own)
    first = tl.load(ends + expert, alive, 0) - (own + M - 1) // M
    tl.store(owner + first + rank // M, expert, alive & (rank % M == 0))


@triton.jit
def rows_of_tile(order, ends, counts, last, expert, tile, M: tl.constexpr):
    """Return which choices, in the order of experts, are a tile's, whether there is one, and which one that is."""
    count, end = tl.load(counts + expert), tl.load(last + expert)
    number = tile - (tl.load(ends + expert) - (count + M - 1) // M)
    row = end - count + number * M + tl.arange(0, M)
    return row, row < end, tl.load(order + row, row < end, 0)


@triton.jit
def store_tile(
    total, gate, bias, out, scale, expert, row, alive, choice, n, length, limit, offset,
    FIRST: tl.constexpr, GATED: tl.constexpr, KIND: tl.constexpr, BIAS: tl.constexpr, CLAMP: tl.constexpr,
):  # fmt: skip
    """Add biases to sums [M, N] and store what comes of them: the first time with an activation, else weighted."""
    inside = n < length
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
        if CLAMP == 2:
            y = tl.minimum(activate(gate, KIND), limit) * (tl.minimum(tl.maximum(y, -limit), limit) + offset)
        elif CLAMP:
            y = activate(tl.minimum(gate, limit), KIND) * (tl.minimum(tl.maximum(y, -limit), limit) + offset)
        elif GATED:
            y = activate(gate, KIND).to(dtype).to(tl.float32) * y
        else:
            y = activate(y, KIND)
        tl.store(out + row[:, None] * length + n[None, :], y.to(dtype), mask)
    else:
        y = total.to(dtype).to(tl.float32) * tl.load(scale + choice, alive, 0.0)[:, None]
        tl.store(out + choice[:, None] * length + n[None, :], y.to(dtype), mask)


@triton.jit
def _tile(
    x, weight, bias, out, order, owner, ends, counts, last, scale, experts, length, width, x_row, limit, offset,
    K: tl.constexpr, M: tl.constexpr, N: tl.constexpr, STEP: tl.constexpr, FIRST: tl.constexpr, GATED: tl.constexpr,
    KIND: tl.constexpr, BIAS: tl.constexpr, CLAMP: tl.constexpr, PRECISION: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Multiply a tile of one expert's rows.  The first time rows of x are gathered by token; then rows lie in the order of
    experts, and results are weighted and go back to where their choices are."""
    let_next_start(EARLY)
    wait_for_last(EARLY)
    tile = tl.program_id(0)
    expert = tl.load(owner + tile)
    if expert >= experts:
        return
    row, alive, choice = rows_of_tile(order, ends, counts, last, expert, tile, M)
    source = choice // K if FIRST else row
    n = tl.program_id(1) * N + tl.arange(0, N)
    inside = n < length
    matrix = weight + expert.to(tl.int64) * (2 * length if GATED else length) * width
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
    store_tile(
        total, gate, bias, out, scale, expert, row, alive, choice, n, length, limit, offset, FIRST, GATED, KIND, BIAS, CLAMP
    )  # fmt: skip
