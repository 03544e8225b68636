"""Attention within chunks: a token at position p sees those from the last multiple of the chunk's size on, or from a few before it.

No kernel knows of that.  A row is cut where chunks begin, and each piece is laid out as a sequence of its own that begins there, or so
many chunks before:

    row        positions 5 … 13, chunks of 8, blocks of 4        table   7 3 9 2
    pieces     positions 5 … 7 of blocks 7 3,   0 … 5 of blocks 9 2
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vllm.errors import ConfigError
from vllm.kv_cache.spec import NULL_BLOCK
from vllm.ops.attention import AttentionBackend, CachePlan, Form, Layout


@dataclass(frozen=True, slots=True)
class ChunkedCache:
    """What makes caches and plans for such layers, of another backend's."""

    attention: AttentionBackend
    size: int
    """Of a chunk, in tokens"""
    before: int = 0
    """How many chunks before its own a token sees"""

    def allocate(self, spec: Any, num_blocks: int, block_size: int, dtype: torch.dtype, quantized: bool = False) -> Any:
        """Return one layer's cache.  Raises ConfigError where a chunk doesn't begin with a block."""
        if self.size % block_size:
            raise ConfigError(
                f"block_size={block_size} doesn't divide the {self.size} tokens that the model's attention is cut into; use "
                "one that does"
            )
        return self.attention.allocate(spec, num_blocks, block_size, dtype, quantized)

    def block_bytes(self, spec: Any, block_size: int, dtype: torch.dtype, quantized: bool = False) -> int:
        """Return the bytes of a block of one layer's cache."""
        return self.attention.block_bytes(spec, block_size, dtype, quantized)

    def copy_block(self, cache: Any, source: int, target: int) -> None:
        """Copy one block of one layer's cache."""
        self.attention.copy_block(cache, source, target)

    def plan(self, rows: int, tokens: int, blocks: int) -> ChunkedPlan:
        """Return a plan that has yet to be placed."""
        return ChunkedPlan(self.attention.plan(2 * rows + tokens // self.size, tokens, blocks), self.size, self.before)


class ChunkedPlan:
    """A plan whose rows are the pieces of a step's rows."""

    def __init__(self, pieces: CachePlan, size: int, before: int) -> None:
        self.pieces = pieces
        """What attention runs with"""
        self.size, self.before = size, before

    @property
    def form(self) -> Form | None:
        """The form of the step it was last placed for, its rows cut to pieces."""
        return self.pieces.form

    def place(self, layout: Layout) -> None:
        """Prepare for a step."""
        self.pieces.place(cut(layout, self.size, self.before))


def cut(layout: Layout, size: int, before: int = 0) -> Layout:
    """Cut the rows of a step where chunks of `size` tokens begin; each piece has the `before` chunks before it, too."""
    assert layout.media is None, "no model cuts attention into chunks and lets the tokens of a medium see each other"
    row, number, first, count = pieces(layout, size)
    width, begin = layout.block_table.shape[1], (number - before).clamp(min=0) * size
    seen = -(-(1 + before) * size // layout.block_size)
    columns = (begin // layout.block_size)[:, None] + torch.arange(min(width, seen))
    table = layout.block_table[row[:, None], columns.clamp(max=width - 1)].where(columns < width, NULL_BLOCK)
    return Layout(layout.first[row] + first - layout.start[row], first - begin, count, table, layout.block_size)


def pieces(layout: Layout, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cut the rows of a step at multiples of `size` tokens.

    Return of each piece its row, the number of its multiple, the position of its first token, and how many it has.  [N] each
    """
    begin, end = layout.start // size, (layout.start + layout.count - 1) // size
    counts = end - begin + 1
    row = torch.repeat_interleave(torch.arange(len(counts)), counts)
    number = begin[row] + torch.arange(len(row)) - (counts.cumsum(0) - counts)[row]
    first = torch.maximum(number * size, layout.start[row])
    last = torch.minimum((number + 1) * size, (layout.start + layout.count)[row])
    return row, number, first, last - first
