"""What the worker keeps of sources, which an encoder beside the decoder reads: keys and values of every layer, by the source's key.

batch.encode ─▶ encoder, all sources of the step one behind another ─▶ k, v of each layer ─▶ blocks
batch.rows   ─▶ which blocks a row attends to
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Several
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from vllm.layers.step import Rows, Step, StepRow
from vllm.layers.transformer import Transformer
from vllm.messages import Batch, Media, Sequence
from vllm.ops.attention import CachePlan, Layout
from vllm.ops.memory import tensor_of
from vllm.ops.staging import sent
from vllm.worker.source_blocks import SourceBlocks, table_of
from vllm.worker.tables import scratch_table


class SourceStates:
    """Has sources encoded, and lays out what a step attends to of them."""

    def __init__(self, model: Transformer, step: Step, num_blocks: int, block_size: int, encoder: Step) -> None:
        """`step` is the decoder's, whose last plan is for sources; `encoder` has plans and caches of the encoder's layers."""
        assert model.encoder is not None, "a model with an encoder"
        self.model, self.encoder = model, model.encoder
        self.step = step
        self.blocks = SourceBlocks(num_blocks, block_size)
        self._encoder_step = encoder

    @property
    def _plan(self) -> CachePlan:
        return self.step.plans[-1]

    def apply(self, batch: Batch, sequences: Mapping[int, Sequence]) -> None:
        """Forget and encode what a batch says."""
        for key in batch.forget:
            self.blocks.forget(key)
        media = [sequences[job.slot].media[job.index] for job in batch.encode]
        if media:
            self._encode(media)

    def lay(self, batch: Batch, step: Step, sequences: Mapping[int, Sequence]) -> None:
        """Place the plan for the rows of a batch, whose tokens are laid into `step`."""
        self._place([row.count for row in batch.rows], [sequences[row.slot].media[0] for row in batch.rows])

    def _encode(self, media: Several[Media]) -> None:
        lengths = [one.length for one in media]
        for one in media:
            self.blocks.take(one.key, one.length)
        step = self._laid(media, [0, *accumulate(lengths[:-1])])
        result = self.encoder(step)
        self._place(lengths, media)
        self.model.read(result, self.step)

    def _laid(self, media: Several[Media], firsts: list[int]) -> Step:
        """Return a step of the encoder: tokens, where there are any, positions, and blocks that belong to the step."""
        device = self.step.token_ids.device
        lengths = [one.length for one in media]
        ids = [one.features["token_ids"] for one in media if "token_ids" in one.features]
        rows = Rows()
        rows.place([_row(one, first) for one, first in zip(media, firsts, strict=True)], ())
        size = self.blocks.block_size
        table = torch.from_numpy(scratch_table(lengths, size, -(-max(lengths) // size)))
        layout = Layout(*_columns(firsts, [0] * len(media), lengths), table, size)
        for plan in self._encoder_step.plans:
            plan.place(layout)
        positions = sent(np.concatenate([np.arange(length) for length in lengths]), device)
        tokens = torch.cat([tensor_of(array) for array in ids]).to(device) if ids else positions
        blank = torch.zeros_like(positions)
        made = self._encoder_step
        return Step(tokens, blank, positions, made.plans, made.caches, made.group_of, made.attention, rows)

    def _place(self, counts: list[int], sources: Several[Media]) -> None:
        """Place the plan for rows of so many tokens, which write or attend to sources."""
        table = table_of([self.blocks.of(source.key) for source in sources])
        firsts = [0, *accumulate(counts[:-1])]
        starts = [source.length - count for source, count in zip(sources, counts, strict=True)]
        self._plan.place(Layout(*_columns(firsts, starts, counts), table, self.blocks.block_size))


def _row(one: Media, first: int) -> StepRow:
    return StepRow(0, first, 0, one.length, one.length, True, [one])


def _columns(first: list[int], start: list[int], count: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    return torch.tensor(first), torch.tensor(start), torch.tensor(count)
