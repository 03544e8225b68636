"""Sums over GPUs that write into each other's memory: one kernel, a few microseconds, where NCCL takes three times as long.

    rank 0   its row ──▶ a place at rank 1        waits until its own places are full, adds up in the order of ranks
    rank 1   its row ──▶ a place at rank 0        …

A place is empty while its bits are those of -0.0, which nobody sends, so that the numbers themselves say that they have come and
there is nothing else to wait for.  Each row has three places of every other rank, in turns: one that is being filled and read, one
that is emptied after it was read the turn before, and one that a rank which is ahead may fill already.  That rank cannot
be further ahead, since it needs what this one sends in the next turn.  Turns are counted per row on the device, so that recorded
steps go on counting.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vllm.logging import get_logger
from vllm.ops.parallel import NextNorm
from vllm.ops.triton.early import early, let_next_start, wait_for_last
from vllm.ops.triton.norms import normalized

logger = get_logger(__name__)
_ROWS = 512
_ROW_BYTES = 16384
_MOST_BYTES = 4 << 20
"""What a rank sends at most; beyond it NCCL's way, which sends less, is as fast."""
_TURNS = 3
_EMPTY = {torch.int16: -(1 << 15), torch.int32: -(1 << 31) | 1 << 15}
"""Two 16-bit numbers of -0.0, or a 32-bit one that is as good as 0."""


class Peers:
    """The memory that each rank of a group writes to, seen from one of them."""

    def __init__(self, rank: int, memories: Sequence[torch.UntypedStorage], own: Tensor) -> None:
        """`memories` are every rank's, seen from here; `own` is this rank's, of `num_bytes(ranks)` bytes, which is emptied here and
        must not be written to before."""
        self.rank, self.size = rank, len(memories)
        self._memories = memories
        own.view(torch.int16).fill_(_EMPTY[torch.int16])
        self._own = own
        addresses = [memory.data_ptr() for memory in memories]
        self._addresses = torch.tensor(addresses, dtype=torch.int64, device=own.device)
        self._turns = torch.zeros(_ROWS, dtype=torch.int32, device=own.device)
        self._abandoned = torch.zeros(1, dtype=torch.int32, device=own.device)
        self._width: int | None = None

    @staticmethod
    def num_bytes(size: int) -> int:
        """Return the bytes of memory that each rank of a group has."""
        return _TURNS * size * _ROWS * _ROW_BYTES

    def takes(self, x: Tensor) -> bool:
        """Return whether it is to add up such a tensor: a few rows, always of the same width."""
        if x.dim() != 2 or x.dtype not in (torch.float32, torch.bfloat16, torch.float16) or x.stride(1) != 1:
            return False
        row_bytes = x.shape[1] * x.itemsize
        fits = 0 < len(x) <= _ROWS and row_bytes <= _ROW_BYTES and len(x) * row_bytes * (self.size - 1) <= _MOST_BYTES
        if fits and self._width is None:
            self._width = row_bytes
        return fits and row_bytes == self._width  # what is emptied is as wide as what was sent before

    def add_up(self, x: Tensor, norm: NextNorm | None = None) -> Tensor:
        """Add up what the ranks have, and make the norm of it; both are the same to the bit everywhere.  [T, D] -> [T, D]"""
        width = x.shape[1]
        bits = torch.int32 if x.dtype == torch.float32 else torch.int16
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        normed = out if norm is None else torch.empty_like(out)
        weight, eps, offset = (out, 0.0, 0.0) if norm is None else (norm.weight, norm.eps, norm.offset)
        padded = triton.next_power_of_2(width)
        _add_up[(len(x),)](
            x.view(bits), out, normed, weight, self._addresses, self._turns, self._abandoned, x.stride(0), width, eps, offset,
            NORM=norm is not None, OFFSET=offset != 0.0,
            RANK=self.rank, RANKS=self.size, ROWS=_ROWS, STRIDE=_ROW_BYTES // x.itemsize, TURNS=_TURNS,
            EMPTY=_EMPTY[bits], PADDED=padded, num_warps=min(max(padded // 512, 1), 8), **early(x.device),
        )  # fmt: skip
        if norm is not None:
            norm.made = out, normed
        return out

    def abandon(self) -> None:
        """Let whoever waits for the others go on with what is there; from any thread."""
        with torch.cuda.stream(torch.cuda.Stream(self._own.device)):
            self._abandoned.fill_(1)
            torch.cuda.current_stream().synchronize()


def meet(rank: int, size: int, device: torch.device) -> Peers | None:
    """Make the memory of this rank known to the others of torch's group.  None where a GPU can't reach another's memory.

    Nobody may add up before all have met.
    """
    others = [torch.device("cuda", other) for other in range(size) if other != rank]
    if not all(torch.cuda.can_device_access_peer(device, other) for other in others):
        return None
    own = torch.empty(Peers.num_bytes(size), dtype=torch.uint8, device=device)
    handles: list[Any] = [None] * size
    torch.distributed.all_gather_object(handles, own.untyped_storage()._share_cuda_())
    # opened as this GPU's, which may reach it then; the first entry is the GPU that it lies on
    opened = [
        own.untyped_storage() if other == rank else torch.UntypedStorage._new_shared_cuda(device.index, *handle[1:])
        for other, handle in enumerate(handles)
    ]
    for other, handle in enumerate(handles):
        if other != rank:  # who ends first need not wait for the others to have let go
            torch.UntypedStorage._release_ipc_counter(*handle[4:6], device=device)
    return Peers(rank, opened, own)


@triton.jit
def _add_up(
    x, out, normed, weight, addresses, turns, abandoned, x_row, width, eps, offset,
    NORM: tl.constexpr, OFFSET: tl.constexpr,
    RANK: tl.constexpr, RANKS: tl.constexpr, ROWS: tl.constexpr, STRIDE: tl.constexpr, TURNS: tl.constexpr,
    EMPTY: tl.constexpr, PADDED: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    let_next_start(EARLY)
    row = tl.program_id(0)
    d = tl.arange(0, PADDED)
    inside = d < width
    if NORM:
        w = tl.load(weight + d, inside, 0.0)
    wait_for_last(EARLY)
    bits: tl.constexpr = x.dtype.element_ty
    dtype: tl.constexpr = out.dtype.element_ty
    mine = tl.load(x + row.to(tl.int64) * x_row + d, inside, 0)
    turn = tl.load(turns + row)
    mine = tl.where(mine == EMPTY, 0, mine).to(bits)
    for rank in tl.static_range(RANKS):
        if rank != RANK:
            there = tl.load(addresses + rank).to(tl.pointer_type(bits))
            place = tl.multiple_of(there, 16) + ((turn * RANKS + RANK) * ROWS + row) * STRIDE
            tl.store(place + d, mine, inside)
    here = tl.multiple_of(tl.load(addresses + RANK).to(tl.pointer_type(bits)), 16)
    read = (turn + TURNS - 1) % TURNS  # in the turn before
    total = tl.zeros([PADDED], tl.float32)
    for rank in tl.static_range(RANKS):
        if rank == RANK:
            total += mine.to(dtype, bitcast=True).to(tl.float32)
        else:
            place = here + ((turn * RANKS + rank) * ROWS + row) * STRIDE
            theirs = tl.load(place + d, inside, 0, volatile=True)
            waits = tl.max((theirs == EMPTY).to(tl.int32), 0) > tl.load(abandoned, volatile=True)
            while waits:
                theirs = tl.load(place + d, inside, 0, volatile=True)
                waits = tl.max((theirs == EMPTY).to(tl.int32), 0) > tl.load(abandoned, volatile=True)
            total += theirs.to(dtype, bitcast=True).to(tl.float32)
            place = here + ((read * RANKS + rank) * ROWS + row) * STRIDE
            tl.store(place + d, tl.full([PADDED], EMPTY, bits), inside)
    summed = total.to(dtype)
    tl.store(out + row.to(tl.int64) * width + d, summed, inside)
    if NORM:
        tl.store(normed + row.to(tl.int64) * width + d, normalized(summed, w, width, eps, offset, OFFSET), inside)
    tl.store(turns + row, (turn + 1) % TURNS)
