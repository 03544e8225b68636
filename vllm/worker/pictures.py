"""What the worker keeps of pictures that layers attend to: keys and values of each such layer, by the picture's key.

batch.encode ─▶ tower ─▶ k, v of each layer ─▶ the picture's blocks
batch.rows   ─▶ cut where pictures stand ─▶ each piece attends to the blocks of those that it sees

tokens    a  b  ▣1 c  d  ▣2 ▣3 e  f
sees      all   1─────▶  2  2, 3 ─▶
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import nn

from vllm.kv_cache.spec import NULL_BLOCK
from vllm.layers.media import Attended
from vllm.layers.pictures import PictureAttention, View, marks_of
from vllm.layers.step import Step
from vllm.layers.transformer import Transformer
from vllm.messages import Batch, Media, Row, Sequence
from vllm.ops.attention import Layout
from vllm.ops.staging import sent
from vllm.worker.source_blocks import SourceBlocks, table_of


@dataclass(frozen=True, slots=True)
class _Piece:
    """Neighbouring tokens of a row that see the same."""

    count: int
    view: View
    blocks: list[int]


class PictureStates:
    """Has pictures encoded, and lays out what a step's tokens attend to of them."""

    def __init__(self, model: Transformer, step: Step, num_blocks: int, block_size: int) -> None:
        """`step` is that of the model; its last plan is for pictures."""
        assert model.seeing is not None and isinstance(model.seeing.tower, Attended), "layers attend to what it saw"
        self.tower = model.seeing.tower
        self.layers = layers_of(model)
        self.step = step
        self.blocks = SourceBlocks(num_blocks, block_size)
        self._num_seen: dict[bytes, int] = {}
        """Picture → how many of its blocks are not of filling alone"""
        self.device = step.token_ids.device
        self.sight = self.layers[0].sight

    def apply(self, batch: Batch, sequences: Mapping[int, Sequence]) -> None:
        """Forget and encode what a batch says."""
        for key in batch.forget:
            self.blocks.forget(key)
            self._num_seen.pop(key, None)
        for job in batch.encode:
            self._encode(sequences[job.slot].media[job.index])

    def lay(self, batch: Batch, step: Step, sequences: Mapping[int, Sequence]) -> None:
        """Place the plan for the rows of a batch, whose tokens are laid into `step`."""
        pieces = [piece for row in batch.rows for piece in self._pieces(row, sequences[row.slot].media)]
        self._place(pieces)
        views = np.repeat([int(piece.view) for piece in pieces], [piece.count for piece in pieces])
        self.sight.fill(sent(views, self.device), any=bool(views.any()))

    def _encode(self, media: Media) -> None:
        """Write a picture's keys and values into whole blocks."""
        size = self.blocks.block_size
        states, filling = self.tower.look(media)
        blocks = self.blocks.take(media.key, len(states))
        self._num_seen[media.key] = -(-int((~filling).sum()) // size)
        padded = len(blocks) * size
        states = nn.functional.pad(states, (0, 0, 0, padded - len(states)))
        marks = marks_of(filling, padded, states.dtype)
        self._place([_Piece(padded, View.ALL, blocks)])
        for layer in self.layers:
            layer.look(states, marks, self.step)

    def _pieces(self, row: Row, media: list[Media]) -> Iterator[_Piece]:
        """Yield a row's tokens, cut where a picture stands."""
        if not media:
            yield _Piece(row.count, View.NOTHING, [NULL_BLOCK])
            return
        places, end = [one.spans[0][0] for one in media], row.start + row.count
        cuts = [row.start, *(place for place in places if row.start < place < end), end]
        for first, stop in pairwise(cuts):
            last = bisect_right(places, first)
            if not last:
                every = [block for one in media for block in self.blocks.of(one.key)]
                yield _Piece(stop - first, View.ALL, every)
                continue
            begin = last - 1
            while begin and places[begin - 1] == places[begin] - 1:
                begin -= 1
            seen = [block for one in media[begin:last] for block in self._seen(one.key)]
            yield _Piece(stop - first, View.BEHIND, seen)

    def _seen(self, key: bytes) -> list[int]:
        return self.blocks.of(key)[: self._num_seen[key]]

    def _place(self, pieces: list[_Piece]) -> None:
        """Place the plan for pieces that write or attend to all of their blocks."""
        size = self.blocks.block_size
        counts = [piece.count for piece in pieces]
        starts = [len(piece.blocks) * size - piece.count for piece in pieces]
        first, start, count = (torch.tensor(each) for each in ([0, *accumulate(counts[:-1])], starts, counts))
        self.step.plans[-1].place(Layout(first, start, count, table_of([piece.blocks for piece in pieces]), size))


def layers_of(model: Transformer) -> list[PictureAttention]:
    """Return a model's layers that attend to pictures."""
    return [module for module in model.blocks.modules() if isinstance(module, PictureAttention)]
