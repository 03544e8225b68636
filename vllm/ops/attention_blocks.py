"""Attention of heads that see the last blocks of a sequence, and before those only some.

No kernel knows of that.  What the tokens of one block see is laid out for each head as a sequence of its own, block behind block:

    blocks of the sequence          0 1 2 3 4 5 6 7
    seen by a head from block 6         2     5 6        the last two, and of the others those with phase 2 of 4
    laid out as                         0     1 2        the tokens stand in block 2, and see what is before them

Since each head sees others, each is a row of its own, and the cache holds the heads of keys and values apart: block b of head g of G
is b · G + g of a cache with one head.  Where a token's keys stand in that layout depends on its position alone, so its result does
not depend on how a prompt was cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vllm.errors import ConfigError
from vllm.kv_cache.spec import Blocks, Full
from vllm.ops.attention import AttentionBackend, AttentionOptions, CachePlan, Layout
from vllm.ops.attention_chunks import pieces


@dataclass(frozen=True, slots=True)
class BlocksCache:
    """What makes caches and plans for such layers, of another backend's."""

    attention: AttentionBackend
    spec: Blocks

    def allocate(self, spec: Any, num_blocks: int, block_size: int, dtype: torch.dtype, quantized: bool = False) -> Any:
        """Return one layer's cache.  Raises ConfigError where a block of the pattern doesn't begin with one of the cache."""
        if self.spec.pattern.size % block_size:
            raise ConfigError(
                f"block_size={block_size} doesn't divide the {self.spec.pattern.size} tokens of the blocks that the model's heads "
                "see or don't; use one that does"
            )
        return self.attention.allocate(_single(spec), num_blocks * spec.kv_heads, block_size, dtype, quantized)

    def block_bytes(self, spec: Any, block_size: int, dtype: torch.dtype, quantized: bool = False) -> int:
        """Return the bytes of a block of one layer's cache."""
        return self.attention.block_bytes(_single(spec), block_size, dtype, quantized) * int(spec.kv_heads)

    def copy_block(self, cache: Any, source: int, target: int) -> None:
        """Copy one block of one layer's cache."""
        heads = self.spec.kv_heads
        for head in range(heads):
            self.attention.copy_block(cache, source * heads + head, target * heads + head)

    def plan(self, rows: int, tokens: int, blocks: int) -> BlocksPlan:
        """Return a plan that has yet to be placed."""
        heads, kv_heads = len(self.spec.pattern.phases), self.spec.kv_heads
        most = 2 * rows + tokens // self.spec.pattern.size  # pieces of rows
        written = self.attention.plan(kv_heads * rows, kv_heads * tokens, blocks)
        return BlocksPlan(self.spec, written, self.attention.plan(heads * most, heads * tokens, blocks))


class BlocksPlan:
    """A plan for what is written, head by head of keys and values, and one for what is seen, head by head of queries."""

    form = None

    def __init__(self, spec: Blocks, written: CachePlan, seen: CachePlan) -> None:
        self.spec = spec
        self.written, self.seen = written, seen

    def place(self, layout: Layout) -> None:
        """Prepare for a step."""
        assert layout.media is None, "no model has heads that see blocks and lets the tokens of a medium see each other"
        self.written.place(_written(layout, self.spec.kv_heads))
        self.seen.place(_seen(layout, self.spec))

    def run(
        self, attention: AttentionBackend, qkv: tuple[Tensor, Tensor, Tensor], cache: Any, options: AttentionOptions
    ) -> Tensor:
        """Write k and v into the cache, then attend.  [T, H, E], [T, G, E], [T, G, Ev] -> [T, H, Ev]"""
        q, k, v = (part.transpose(0, 1).flatten(0, 1).unsqueeze(1) for part in qkv)  # [H T, 1, E]
        attention.write(k, v, cache, self.written)
        found = attention.attend(q, _single(self.spec), cache, self.seen, options)
        return found.unflatten(0, (-1, len(qkv[0]))).squeeze(2).transpose(0, 1)


def _single(spec: Full) -> Full:
    return Full(1, spec.head_dim, spec.value_dim)


def _written(layout: Layout, kv_heads: int) -> Layout:
    """Lay a step out head by head, each with blocks of its own."""
    head, tokens = torch.arange(kv_heads), int(layout.count.sum())
    return Layout(
        (head[:, None] * tokens + layout.first).flatten(),
        layout.start.repeat(kv_heads),
        layout.count.repeat(kv_heads),
        (layout.block_table * kv_heads + head[:, None, None]).flatten(0, 1).int(),
        layout.block_size,
    )


def _seen(layout: Layout, spec: Blocks) -> Layout:
    """Lay out what each head sees from each of the pattern's blocks that a row has tokens in."""
    pattern, phases = spec.pattern, torch.tensor(spec.pattern.phases)[:, None]  # [H, 1]
    heads, tokens = len(phases), int(layout.count.sum())
    row, number, first, count = pieces(layout, pattern.size)  # [N] each
    recent = (number - pattern.local + 1).clamp(min=0)  # the first of the last blocks
    num_old = (recent - phases + pattern.stride - 1).div(pattern.stride, rounding_mode="floor").clamp(min=0)  # [H, N]
    num_seen = num_old + number - recent + 1
    place = torch.arange(int(num_seen.max()))  # [M]
    old, late = phases[..., None] + place * pattern.stride, recent[:, None] + place - num_old[..., None]
    table = _entries(layout, row, old.where(place < num_old[..., None], late), pattern.size)  # [H, N, B]
    of_head = (torch.arange(heads) // (heads // spec.kv_heads))[:, None, None]
    return Layout(
        (torch.arange(heads)[:, None] * tokens + (layout.first - layout.start)[row] + first).flatten(),
        ((num_seen - 1) * pattern.size + first - number * pattern.size).flatten(),
        count.repeat(heads),
        (table * spec.kv_heads + of_head).flatten(0, 1).int(),
        layout.block_size,
    )


def _entries(layout: Layout, row: Tensor, numbers: Tensor, size: int) -> Tensor:
    """Return what rows' tables hold of blocks of `size` tokens; of those behind their end, anything.  [N], [H, N, M] -> [H, N, B]"""
    each = size // layout.block_size
    columns = (numbers[..., None] * each + torch.arange(each)).flatten(2)
    return layout.block_table[row[:, None], columns.clamp(max=layout.block_table.shape[1] - 1)]
