"""What the worker keeps of every living sequence: one row per slot.

    tokens        [slots, max_model_len + 1]     prompt and output
    block tables  [slots, blocks] per cache group

Batches carry only changes; `apply` books them, `pack` turns a batch's rows into a Step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vllm.kv_cache.spec import NULL_BLOCK
from vllm.layers.step import Step
from vllm.messages import Batch, Row, Sequence
from vllm.ops.attention import AttentionPlan, Layout
from vllm.ops.memory import zeros


@dataclass(slots=True)
class Packed:
    """A batch's rows on the device, and where each lies."""

    step: Step
    slots: np.ndarray
    """[R]"""
    first: np.ndarray
    """[R] each row's first token in the step"""
    ends: np.ndarray
    """[R] each row's tokens so far: start + count"""


class SlotTables:
    """Tokens and block tables by slot."""

    def __init__(self, num_slots: int, max_model_len: int, num_groups: int, block_size: int) -> None:
        num_blocks = -(-max_model_len // block_size)
        self.block_size = block_size
        self.tokens = zeros(num_slots, max_model_len + 1, dtype=torch.int64, device=torch.device("cpu"))
        self.blocks = [torch.full((num_slots, num_blocks), NULL_BLOCK, dtype=torch.int32) for _ in range(num_groups)]
        self.sequences: dict[int, Sequence] = {}
        self._num_blocks = np.zeros((num_slots, num_groups), dtype=np.int64)

    def apply(self, batch: Batch) -> None:
        """Book what changed since the last batch."""
        for slot in batch.released:
            self.sequences.pop(slot, None)  # a step that failed may never have brought it here
        for sequence in batch.admitted:
            self.sequences[sequence.slot] = sequence
            self.tokens[sequence.slot, : len(sequence.token_ids)] = torch.tensor(sequence.token_ids)
            self._num_blocks[sequence.slot] = 0
        for row in batch.rows:
            self._apply_row(row)

    def append(self, slot: int, position: int, token: int) -> None:
        """Write a chosen token."""
        self.tokens[slot, position] = token

    def pack(
        self, batch: Batch, plans: tuple[AttentionPlan, ...], caches: tuple[Any, ...], group_of: tuple[int, ...]
    ) -> Packed:
        """Lay the rows' tokens one after another, and place the cache groups' plans for them."""
        slots = np.array([row.slot for row in batch.rows])
        start = np.array([row.start for row in batch.rows])
        count = np.array([row.count for row in batch.rows])
        first = np.cumsum(count) - count
        owner = np.repeat(np.arange(len(slots)), count)
        positions = torch.from_numpy(np.arange(len(owner)) - first[owner] + start[owner])
        token_ids = self.tokens[torch.from_numpy(slots[owner]), positions]
        width = -(-int((start + count).max()) // self.block_size)
        rows = torch.from_numpy(slots)
        first_, start_, count_ = (torch.from_numpy(column) for column in (first, start, count))
        for plan, table in zip(plans, self.blocks, strict=True):
            plan.place(Layout(first_, start_, count_, table[rows, :width], self.block_size))
        return Packed(Step(token_ids, positions, plans, caches, group_of), slots, first, start + count)

    def _apply_row(self, row: Row) -> None:
        if row.tokens:
            end = row.start + row.count
            self.tokens[row.slot, end - len(row.tokens) : end] = torch.tensor(row.tokens)
        for group, blocks in enumerate(row.new_blocks):
            if blocks:
                known = int(self._num_blocks[row.slot, group])
                self.blocks[group][row.slot, known : known + len(blocks)] = torch.tensor(blocks, dtype=torch.int32)
                self._num_blocks[row.slot, group] = known + len(blocks)
        for group, stale in enumerate(row.stale):
            self.blocks[group][row.slot, :stale] = NULL_BLOCK

    def prompt_span(self, row: Row) -> Tensor:
        """Return the prompt tokens that the row's hidden states predict: those at [start + 1, start + count]."""
        sequence = self.sequences[row.slot]
        return self.tokens[row.slot, row.start + 1 : min(row.start + row.count + 1, sequence.num_prompt)]
