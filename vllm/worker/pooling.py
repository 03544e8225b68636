"""From hidden states to what a pooling model gives: collected until a prompt is whole, then pooled."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from vllm.layers.pooler import Pooler, PoolingRow
from vllm.messages import Batch, Pooled, Row, RowOutput, Sequence
from vllm.ops.staging import fetch
from vllm.pooling_params import Pooling
from vllm.worker.tables import Packed, SlotTables

UNSOUND = "the model computed a value that is not a finite number; check its weights, or run it with dtype='float32'"


class PooledStates:
    """Pools prompts."""

    def __init__(self, pooler: Pooler, pooling: Pooling, tables: SlotTables) -> None:
        self.pooler = pooler
        self.pooling = pooling
        self.tables = tables
        self._earlier: dict[int, list[Tensor]] = {}
        """By slot, the hidden states of earlier steps, where all of a prompt's count."""

    def admit(self, sequence: Sequence) -> None:
        """Take note of a sequence that got a slot."""
        self._earlier.pop(sequence.slot, None)

    def release(self, slot: int) -> None:
        """Forget what a slot held."""
        self._earlier.pop(slot, None)

    def start(self, batch: Batch, packed: Packed, hidden: Tensor) -> Callable[[], list[RowOutput]]:
        """Pool the prompts that a batch has brought to their ends.  …, [T, D]"""
        outputs = [RowOutput() for _ in batch.rows]
        whole: list[RowOutput] = []
        rows: list[PoolingRow] = []
        for row, output, last in zip(batch.rows, outputs, packed.last, strict=True):
            if found := self._row(row, hidden[last + 1 - row.count : last + 1]):
                whole.append(output)
                rows.append(found)
        values = fetch(*self.pooler(rows)) if rows else list

        def finish() -> list[RowOutput]:
            for output, result in zip(whole, values(), strict=True):
                if np.isfinite(result).all():
                    output.pooled = Pooled(result.shape, result.tobytes())
                else:
                    output.error = UNSOUND
            return outputs

        return finish

    def _row(self, row: Row, states: Tensor) -> PoolingRow | None:
        """Return a prompt that is whole now; put away the states [n, D] of one that is not."""
        sequence = self.tables.sequences[row.slot]
        params = sequence.pooling
        assert params is not None, "who generates is another purpose's"
        keeps_all = self.pooling.keeps_all(params)
        if not row.wants_token:
            if keeps_all:  # the next step overwrites them where they are
                self._earlier.setdefault(row.slot, []).append(states.clone())
            return None
        if not keeps_all:
            states = states[-1:]
        elif earlier := self._earlier.pop(row.slot, None):
            states = torch.cat([*earlier, states])
        return PoolingRow(states, self.tables.tokens[row.slot, : sequence.num_prompt], params)
