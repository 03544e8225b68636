"""The rows of a step and where their states are, in buffers that keep their places, so that a recorded step finds the next
step's there; and what the kernels of recurrences read of them.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from vllm.ops.attention import MOST_RECORDED, Form, Layout
from vllm.ops.staging import send
from vllm.ops.states import StateMemory, StatePlan


class TritonStatePlan(StatePlan):
    """In one buffer: the width W of the block table; first, start and count of each row, count being 0 where there is none; the
    block table [R, W]."""

    def __init__(self, device: torch.device, max_rows: int, max_blocks: int) -> None:
        super().__init__(device)
        self.form = Form.SINGLES
        self.max_rows = max_rows
        self._buffer = torch.zeros(1 + (3 + max_blocks) * max_rows, dtype=torch.int32, device=device)
        self.width, self.rows, self.table = self._buffer.split((1, 3 * max_rows, max_rows * max_blocks))
        self.block_size = 0
        self._num_rows = 0

    def place(self, layout: Layout) -> None:
        """Bring a step's layout to the device."""
        super().place(layout)
        table, most = layout.block_table.numpy(), self.max_rows
        values = np.zeros(1 + 3 * most + table.size, dtype=np.int32)
        values[0] = table.shape[1]
        for index, part in enumerate((layout.first, layout.start, layout.count)):
            values[1 + index * most :][: len(part)] = part.numpy()
        values[1 + 3 * most :] = table.ravel()
        send(values, self._buffer[: len(values)])
        self.block_size, self._num_rows = layout.block_size, len(layout.count)
        self.form = Form.SINGLES if bool((layout.count == 1).all()) else Form.MIXED

    def num_rows(self, num_tokens: int) -> int:
        """Return for how many rows to compute; a step that may be recorded computes for as many as there can be."""
        return self._num_rows if num_tokens > MOST_RECORDED else min(num_tokens, self.max_rows)

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor, int]:
        """What kernels give to `row_of`."""
        return self.width, self.rows, self.table, self.max_rows


class TritonStateMemory(StateMemory):
    """Where states are kept on a GPU."""

    def plan(self, rows: int, tokens: int, blocks: int) -> TritonStatePlan:
        """Return a plan that has yet to be placed."""
        return TritonStatePlan(self.device, rows, blocks)


@triton.jit
def row_of(width, rows, table, max_rows, S: tl.constexpr):
    """Return of the program's row its first token, that one's position, how many it has, its line of the block table, and the
    block of the state before it; 0 where a sequence begins."""
    row = tl.program_id(0)
    first, start = tl.load(rows + row).to(tl.int64), tl.load(rows + max_rows + row)
    count = tl.load(rows + 2 * max_rows + row)
    blocks = table + row.to(tl.int64) * tl.load(width)
    reads = tl.load(blocks + (start - 1) // S, (start > 0) & (count > 0), 0).to(tl.int64)
    return first, start, count, blocks, reads


@triton.jit
def leaves(blocks, start, count, token, S: tl.constexpr):
    """Return the block that gets the state after a token of the row; 0: none."""
    is_border = ((start + token + 1) % S == 0) | (token + 1 == count)
    return tl.load(blocks + (start + token) // S, is_border, 0).to(tl.int64)


@triton.jit
def softplus(x):
    """log(1 + exp(x)), exactly also where that is small: log(1 + u) is 2 artanh(u / (2 + u)), of at most a third."""
    u = tl.exp(-tl.abs(x))
    s = u / (2 + u)
    z = s * s
    series = 1 + z * (1 / 3 + z * (1 / 5 + z * (1 / 7 + z * (1 / 9 + z * (1 / 11 + z * (1 / 13 + z * (1 / 15)))))))
    return tl.maximum(x, 0.0) + 2 * s * series
