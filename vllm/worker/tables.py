"""What the worker keeps of every living sequence: its tokens, and one row per slot and cache group of its block table.

    block tables  [slots, blocks] per cache group

Batches carry only changes; `apply` books them, `pack` lays a batch's rows into buffers, one after another.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from vllm.kv_cache.spec import NULL_BLOCK, CacheGroup, Scratch
from vllm.layers.step import Rows, StepRow
from vllm.messages import Batch, Row, Sequence
from vllm.ops.attention import CachePlan, Layout
from vllm.worker.tokens import Tokens


@dataclass(slots=True)
class Packed:
    """How a batch's tokens lie in the buffers."""

    num_tokens: int
    last: list[int]
    """[R] each row's last token in the step"""


class SlotTables:
    """Tokens and block tables by slot."""

    def __init__(self, tokens: Tokens, groups: tuple[CacheGroup, ...], block_size: int) -> None:
        """`groups` are all cache groups: first those with blocks of a pool, then those whose blocks belong to the step."""
        self._num_scratch = sum(isinstance(group.spec, Scratch) for group in groups)
        num_groups = len(groups) - self._num_scratch
        self.store = tokens
        self.num_slots, longest = tokens.tokens.shape
        self.num_blocks = -(-(longest - 1) // block_size)
        self.block_size = block_size
        self.blocks = [
            np.full((self.num_slots, self.num_blocks), NULL_BLOCK, dtype=np.int32) for _ in range(num_groups)
        ]
        self.sequences: dict[int, Sequence] = {}
        self._types: dict[int, np.ndarray] = {}
        self._num_blocks = [[0] * num_groups for _ in range(self.num_slots)]
        self.rows = Rows()
        self.whole_media = False
        """Tokens of a medium see each other."""

    @property
    def tokens(self) -> Tensor:
        """[slots, L]: each sequence's tokens"""
        return self.store.tokens

    def apply(self, batch: Batch) -> None:
        """Book what changed since the last batch."""
        for slot in batch.released:
            self.sequences.pop(slot, None)  # a step that failed may never have brought it here
            if self._types.pop(slot, None) is not None and not self._types:
                self.store.lay_types(np.zeros(len(self.store.token_types), dtype=np.int64))
        for sequence in batch.admitted:
            self.sequences[sequence.slot] = sequence
            self.store.write(sequence.slot, 0, sequence.token_ids)
            self._num_blocks[sequence.slot] = [0] * len(self.blocks)
            if sequence.token_types:
                self._types[sequence.slot] = np.array(sequence.token_types)
        for row in batch.rows:
            self._apply_row(row)

    def pack(self, batch: Batch, plans: tuple[CachePlan, ...]) -> Packed:
        """Lay the rows' tokens and positions one after another, and place the cache groups' plans for them; that of sources, which
        comes last, is placed by who has them."""
        rows = batch.rows
        stops = list(accumulate(row.count for row in rows))
        width = -(-max(row.start + row.count for row in rows) // self.block_size)
        tables = [np.empty((len(rows), width), dtype=np.int32) for _ in self.blocks]
        for index, row in enumerate(rows):
            for table, blocks in zip(tables, self.blocks, strict=True):
                table[index] = blocks[row.slot, :width]
        self.store.lay(rows, stops)
        if self._types:
            self._lay_types(rows)
        firsts = _column([stop - row.count for row, stop in zip(rows, stops, strict=True)])
        starts, counts = _column([row.start for row in rows]), _column([row.count for row in rows])
        tables += [scratch_table([row.count for row in rows], self.block_size, width)] * self._num_scratch
        media, apart = self._runs(rows) if self.whole_media else (None, None)
        for plan, table in zip(plans, tables, strict=False):
            plan.place(Layout(firsts, starts, counts, torch.from_numpy(table), self.block_size, media, apart))
        self.rows.place([self._placed(row, stop) for row, stop in zip(rows, stops, strict=True)], self.sequences.keys())
        return Packed(stops[-1], [stop - 1 for stop in stops])

    def _runs(self, rows: list[Row]) -> tuple[Tensor | None, Tensor | None]:
        """Return the run of a medium's tokens that each token is of; None if none is of any; and which tokens take no part in theirs, if
        there may be such.  -> [T, 2], [T]"""
        if not any(self.sequences[row.slot].media and row.start < self.sequences[row.slot].num_prompt for row in rows):
            return None, None
        parts, aparts = [], []
        for row in rows:
            own = np.arange(row.start, row.start + row.count)
            runs = np.stack((own, own + 1), axis=1)
            for one in self.sequences[row.slot].media:
                for first, end in one.runs:
                    runs[max(0, first - row.start) : max(0, end - row.start)] = first, end
            parts.append(runs)
            within = [run for one in self.sequences[row.slot].media[:1] for run in one.within]
            apart = np.full(row.count, bool(within), dtype=np.uint8)
            for first, end in within:
                apart[max(0, first - row.start) : max(0, end - row.start)] = 0
            aparts.append(apart)
        apart = np.concatenate(aparts)
        return torch.from_numpy(np.concatenate(parts)), torch.from_numpy(apart) if apart.any() else None

    def _placed(self, row: Row, stop: int) -> StepRow:
        sequence = self.sequences[row.slot]
        wants_all = sequence.pooling is not None or sequence.params.prompt_logprobs is not None
        return StepRow(
            row.slot,
            stop - row.count,
            row.start,
            row.count,
            sequence.num_prompt,
            wants_all,
            sequence.media,
        )

    def _lay_types(self, rows: list[Row]) -> None:
        parts = []
        for row in rows:
            known = self._types.get(row.slot)
            nothing = np.zeros(row.count, dtype=np.int64)
            parts.append(nothing if known is None else known[row.start : row.start + row.count])
        self.store.lay_types(np.concatenate(parts))

    def _apply_row(self, row: Row) -> None:
        if row.tokens:
            end = row.start + row.count
            self.store.write(row.slot, end - len(row.tokens), row.tokens)
        for group, blocks in enumerate(row.new_blocks):
            if blocks:
                known = self._num_blocks[row.slot][group]
                self.blocks[group][row.slot, known : known + len(blocks)] = blocks
                self._num_blocks[row.slot][group] = known + len(blocks)
        for group, stale in enumerate(row.stale):
            self.blocks[group][row.slot, :stale] = NULL_BLOCK

    def prompt_span(self, row: Row) -> Tensor:
        """Return the prompt tokens that the row's hidden states predict: those at [start + 1, start + count]."""
        sequence = self.sequences[row.slot]
        return self.tokens[row.slot, row.start + 1 : min(row.start + row.count + 1, sequence.num_prompt)]


def scratch_table(lengths: list[int], block_size: int, width: int) -> np.ndarray:
    """Give each row of a step as many blocks as it has tokens for, one row's behind the other's.  -> [R, width] int32"""
    counts = [-(-length // block_size) for length in lengths]
    firsts = np.array([*accumulate(counts[:-1], initial=NULL_BLOCK + 1)], dtype=np.int32)
    table = firsts[:, None] + np.arange(width, dtype=np.int32)
    return np.where(np.arange(width) < np.array(counts)[:, None], table, np.int32(NULL_BLOCK))


def _column(values: list[int]) -> Tensor:
    return torch.from_numpy(np.array(values, dtype=np.int64))
