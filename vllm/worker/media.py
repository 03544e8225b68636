"""What the worker keeps of media: their embeddings, as long as batches say, and where those of a step go."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from vllm.layers.media import Places
from vllm.layers.rotary import SpatialRotary
from vllm.layers.step import Step
from vllm.layers.transformer import Transformer
from vllm.messages import Batch, Media, Row, Sequence
from vllm.ops.staging import sent


class MediaStates:
    """Encodes media, and lays what a step has of them into the model's input."""

    def __init__(self, model: Transformer, max_tokens: int, dtype: torch.dtype, device: torch.device) -> None:
        """`max_tokens` is the most that a step has."""
        assert model.seeing is not None and model.reads is not None, "a model that sees"
        self.tower = model.seeing.tower
        self.entry = model.reads
        self.entry.make_room(max_tokens, self.tower.width, dtype, device)
        self.rotary = [module for module in model.modules() if isinstance(module, SpatialRotary)]
        for rotary in self.rotary:
            rotary.make_room(max_tokens)
        self.device = device
        self._held: dict[bytes, list[Tensor]] = {}
        self._positions: dict[int, tuple[np.ndarray, int]] = {}

    @property
    def num_bytes(self) -> int:
        """The memory that it takes at most: the tower's weights, a step's input, and as many embeddings as are kept."""
        return self.tower.num_bytes + 2 * sum(tensor.nbytes for tensor in (self.entry.embeddings, *self.entry.deep))

    def apply(self, batch: Batch, sequences: Mapping[int, Sequence]) -> None:
        """Forget and encode what a batch says."""
        for slot in batch.released:
            self._positions.pop(slot, None)
        for sequence in batch.admitted:
            if self.rotary and sequence.media:
                prompt = sequence.token_ids[: sequence.num_prompt]
                positions, shift = self.tower.positions(prompt, sequence.media)
                self._positions[sequence.slot] = positions.numpy(), shift
        for key in batch.forget:
            self._held.pop(key, None)  # a step that failed may never have encoded it
        for job in batch.encode:
            media = sequences[job.slot].media[job.index]
            self._held[media.key] = self.tower.encode(media)

    def lay(self, batch: Batch, step: Step, sequences: Mapping[int, Sequence]) -> None:
        """Prepare the model's input for the rows of a batch, whose tokens are laid into `step`."""
        firsts = [0, *accumulate(row.count for row in batch.rows)]
        pairs = list(zip(batch.rows, firsts[:-1], strict=True))
        places = [place for row, first in pairs for place in self._places(row, first, sequences[row.slot].media)]
        self.entry.fill(step.first(firsts[-1]), places)
        if self.rotary:
            positions = np.concatenate([self._positions_of(row) for row in batch.rows], axis=1)
            for rotary in self.rotary:
                rotary.fill(sent(positions, self.device))

    def _places(self, row: Row, first: int, media: list[Media]) -> Iterator[Places]:
        """Yield what belongs to a row whose tokens begin at `first` of the step."""
        end = row.start + row.count
        for one in media:
            if one.first >= end or one.end <= row.start:
                continue
            rows, parts, passed = [], [], 0
            for begin, stop in one.spans:
                low, high = max(begin, row.start), min(stop, end)
                if low < high:
                    rows.append(np.arange(low, high) - row.start + first)
                    parts.append(slice(passed + low - begin, passed + high - begin))
                passed += stop - begin
            if rows:
                held = [torch.cat([tensor[part] for part in parts]) for tensor in self._held[one.key]]
                yield Places(sent(np.concatenate(rows), self.device), held)

    def _positions_of(self, row: Row) -> np.ndarray:
        """Return the positions of a row's tokens in time, height and width.  -> [3, n]"""
        index = np.arange(row.start, row.start + row.count)
        known, shift = self._positions.get(row.slot, (np.empty((3, 0), dtype=np.int64), 0))
        past = known[:, row.start : row.start + row.count]
        return np.concatenate((past, np.tile(index[past.shape[1] :] + shift, (3, 1))), axis=1)
