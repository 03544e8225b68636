"""The blocks of what an encoder or a tower made, by the key of what it was made of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vllm.kv_cache.spec import NULL_BLOCK


class SourceBlocks:
    """Gives out the blocks of a pool, as batches say what is to be encoded and what to be forgotten."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        """`num_blocks` are those of the pool, the null block included."""
        self.block_size = block_size
        self._free = list(range(num_blocks - 1, NULL_BLOCK, -1))
        self._held: dict[bytes, list[int]] = {}

    def take(self, key: bytes, length: int) -> list[int]:
        """Return blocks for so many positions."""
        self.forget(key)  # the batch that was to do so may have failed
        self._held[key] = blocks = [self._free.pop() for _ in range(-(-length // self.block_size))]
        return blocks

    def of(self, key: bytes) -> list[int]:
        """Return the blocks that were taken under a key."""
        return self._held[key]

    def forget(self, key: bytes) -> None:
        """Take blocks back; a step that failed may never have given them out."""
        self._free += self._held.pop(key, [])


def table_of(rows: Sequence[Sequence[int]]) -> Tensor:
    """Return a block table of rows that have so many blocks.  -> [R, B] int32"""
    table = np.full((len(rows), max(len(row) for row in rows)), NULL_BLOCK, dtype=np.int32)
    for place, row in zip(table, rows, strict=True):
        place[: len(row)] = row
    return torch.from_numpy(table)
