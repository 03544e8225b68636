"""States of recurrent layers: the memory they are in, and which of them a step reads and leaves.

A layer's cache is a tensor [num_blocks, …] for each tensor of its state.  A recurrence goes through runs: rows of one token
are computed side by side, longer ones by themselves, token after token.

    row     tokens of the step      reads     leaves
    0       ■                       7         after its token in 7
    1       ■                       9         after its token in 2          run: rows 0, 1 × 1 token
    2       ■ ■ ■ ■ ■ ■             –         after the fourth in 4, after the sixth in 5

What is computed of a token must not depend on the other rows of its run, nor on how many tokens the run has.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vllm.kv_cache.spec import NULL_BLOCK, State
from vllm.ops.attention import Form, Layout
from vllm.ops.memory import zeros
from vllm.ops.native.attention import NativePlan

StateCache = tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """r rows of n tokens each."""

    tokens: Tensor
    """[n, r] where their tokens are in the step"""
    reads: Tensor
    """[r] the block of the state before each row; the null block where a sequence begins"""
    leaves: dict[int, Tensor]
    """Token of the run → the blocks [r] that get the states after it"""

    def begin(self, memory: Tensor) -> Tensor:
        """Return the states before the rows, zeros where a sequence begins.  [num_blocks, …] -> [r, …]"""
        begins = (self.reads == NULL_BLOCK).view(-1, *(1,) * (memory.ndim - 1))
        return memory[self.reads].masked_fill(begins, 0)

    def leave(self, memory: Tensor, token: int, states: Tensor) -> None:
        """Keep the states after a token, if they are wanted.  [num_blocks, …], [r, …]"""
        if token in self.leaves:
            memory[self.leaves[token]] = states.to(memory.dtype)


class StatePlan:
    """The rows of a step, for kernels by an address, which stays the same, and for torch in runs."""

    def __init__(self, device: torch.device) -> None:
        self.form = Form.ANY if device.type == "cpu" else None
        self._device = device
        self._native = NativePlan()
        self.address = self._native.address
        self._layout: Layout | None = None
        self._runs: list[Run] | None = None

    def place(self, layout: Layout) -> None:
        """Prepare for a step."""
        self._native.place(layout)
        self._layout, self._runs = layout, None

    @property
    def runs(self) -> list[Run]:
        """What each row reads and leaves."""
        if self._runs is None:
            assert self._layout is not None, "a plan is placed before it is used"
            self._runs = self._found(self._layout)
        return self._runs

    def _found(self, layout: Layout) -> list[Run]:
        first, start, count = (part.numpy() for part in (layout.first, layout.start, layout.count))
        table, size = layout.block_table.numpy(), layout.block_size
        before = table[np.arange(len(first)), np.maximum(start - 1, 0) // size]
        reads = np.where(start > 0, before, NULL_BLOCK)
        singles = np.flatnonzero(count == 1)
        runs = []
        if len(singles):
            last = table[singles, start[singles] // size]
            runs.append(self._run(first[None, singles], reads[singles], {0: last}))
        for row in np.flatnonzero(count > 1):
            end = start[row] + count[row]
            blocks = np.arange(start[row] // size, -(-end // size))
            blocks = blocks[table[row, blocks] != NULL_BLOCK]
            tokens = np.minimum((blocks + 1) * size, end) - 1 - start[row]
            leaves = {int(token): table[row, block : block + 1] for token, block in zip(tokens, blocks, strict=True)}
            runs.append(self._run(first[row] + np.arange(count[row])[:, None], reads[row : row + 1], leaves))
        return runs

    def _run(self, tokens: np.ndarray, reads: np.ndarray, leaves: dict[int, np.ndarray]) -> Run:
        return Run(self._sent(tokens), self._sent(reads), {token: self._sent(to) for token, to in leaves.items()})

    def _sent(self, numbers: np.ndarray) -> Tensor:
        return torch.from_numpy(numbers.astype(np.int64)).to(self._device)


class StateMemory:
    """Where states are kept."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def allocate(
        self, spec: State, num_blocks: int, block_size: int, dtype: torch.dtype, quantized: bool = False
    ) -> StateCache:
        """Return one layer's cache, zeroed.  The tensors' own dtypes count."""
        return tuple(
            zeros(num_blocks, *part.shape, dtype=getattr(torch, part.dtype), device=self.device)
            for part in spec.tensors
        )

    def block_bytes(self, spec: State, block_size: int, dtype: torch.dtype, quantized: bool = False) -> int:
        """Return the bytes of one state."""
        return sum(int(np.prod(part.shape)) * getattr(torch, part.dtype).itemsize for part in spec.tensors)

    def copy_block(self, cache: StateCache, source: int, target: int) -> None:
        """Copy one state."""
        for part in cache:
            part[target] = part[source]

    def plan(self, rows: int, tokens: int, blocks: int) -> StatePlan:
        """Return a plan that has yet to be placed."""
        return StatePlan(self.device)
