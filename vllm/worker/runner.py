"""Computes batches: slots → buffers → model → what the batch is for.  It decides nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from vllm.kv_cache.spec import CacheGroup
from vllm.messages import Batch, RowOutput, Sequence, StepOutput
from vllm.ops.attention import CacheBackend
from vllm.worker.forward import HiddenStates
from vllm.worker.media import MediaStates
from vllm.worker.pictures import PictureStates
from vllm.worker.sources import SourceStates
from vllm.worker.tables import Packed, SlotTables


class Purpose(Protocol):
    """What is made of hidden states: tokens, or something pooled."""

    def admit(self, sequence: Sequence) -> None:
        """Take note of a sequence that got a slot."""

    def release(self, slot: int) -> None:
        """Forget what a slot held."""

    def start(self, batch: Batch, packed: Packed, hidden: Tensor) -> Callable[[], list[RowOutput]]:
        """Start to compute what the hidden states [T, D] of a batch bring.

        The function that is returned waits for it and gives it, row for row.  Another step may be started before that.
        """


@dataclass(frozen=True, slots=True)
class Started:
    """A batch whose computation is under way."""

    step: int
    finish: Callable[[], list[RowOutput]]

    def result(self) -> StepOutput:
        """Wait for what came of it.  Row for row, the output says what that is."""
        return StepOutput(self.step, self.finish())


class ModelRunner:
    """A model with its cache, on one device."""

    def __init__(
        self,
        groups: tuple[CacheGroup, ...],
        caches: tuple[Any, ...],
        backends: tuple[CacheBackend, ...],
        tables: SlotTables,
        hidden: HiddenStates,
        purpose: Purpose,
        media: MediaStates | SourceStates | PictureStates | None = None,
    ) -> None:
        """`caches` holds one cache per layer that has one, made by its group's backend.  `media`: what is kept of what a tower or
        an encoder makes."""
        self.groups = groups
        self.caches = caches
        self.backends = backends
        self.tables = tables
        self.hidden = hidden
        self.purpose = purpose
        self.media = media

    @torch.inference_mode()
    def execute(self, batch: Batch) -> Started:
        """Compute one batch, or start to where the device works by itself."""
        for slot in batch.released:
            self.purpose.release(slot)
        self.tables.apply(batch)
        for sequence in batch.admitted:
            self.purpose.admit(sequence)
        for copy in batch.copies:
            for layer in self.groups[copy.group].layers:
                self.backends[copy.group].copy_block(self.caches[layer], copy.source, copy.target)
        packed = self.tables.pack(batch, self.hidden.step.plans)
        if self.media is not None:
            self.media.apply(batch, self.tables.sequences)
            self.media.lay(batch, self.hidden.step, self.tables.sequences)
        hidden = self.hidden.compute(packed.num_tokens)
        return Started(batch.step, self.purpose.start(batch, packed, hidden))
