"""Computes batches: slots → Step → model → sampler → StepOutput.  It decides nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from vllm.kv_cache.spec import CacheGroup
from vllm.layers.decoder import Decoder
from vllm.messages import Batch, RowOutput, StepOutput
from vllm.ops.attention import AttentionBackend
from vllm.sampling.sampler import UNSOUND, Sampler
from vllm.worker.tables import Packed, SlotTables


class ModelRunner:
    """A model with its cache, on one device."""

    def __init__(
        self,
        model: Decoder,
        groups: tuple[CacheGroup, ...],
        caches: tuple[Any, ...],
        backend: AttentionBackend,
        tables: SlotTables,
        sampler: Sampler,
    ) -> None:
        """`caches` holds one cache per attention layer, made by `backend`."""
        self.model = model
        self.groups = groups
        self.caches = caches
        self.backend = backend
        self.plans = tuple(backend.plan() for _ in groups)
        self.tables = tables
        self.sampler = sampler
        num_layers = sum(len(group.layers) for group in groups)
        self.group_of = tuple(next(g for g, group in enumerate(groups) if i in group.layers) for i in range(num_layers))

    @torch.inference_mode()
    def execute(self, batch: Batch) -> StepOutput:
        """Compute one batch.  Row for row, the output says what came of it."""
        for slot in batch.released:
            self.sampler.release(slot)
        self.tables.apply(batch)
        for sequence in batch.admitted:
            self.sampler.admit(
                sequence.slot,
                sequence.params,
                seed=sequence.seed,
                eos_token_ids=sequence.eos_token_ids,
                bad_words_ids=sequence.bad_words_ids,
                num_prompt=sequence.num_prompt,
            )
        for copy in batch.copies:
            for layer in self.groups[copy.group].layers:
                self.backend.copy_block(self.caches[layer], copy.source, copy.target)
        packed = self.tables.pack(batch, self.plans, self.caches, self.group_of)
        hidden = self.model(packed.step)
        outputs = [RowOutput() for _ in batch.rows]
        self._prompt_logprobs(batch, packed, hidden, outputs)
        self._choose(batch, packed, hidden, outputs)
        return StepOutput(batch.step, outputs)

    def _prompt_logprobs(self, batch: Batch, packed: Packed, hidden: Tensor, outputs: list[RowOutput]) -> None:
        for index, row in enumerate(batch.rows):
            wanted = self.tables.sequences[row.slot].params.prompt_logprobs
            if wanted is not None:
                targets = self.tables.prompt_span(row)
                first = int(packed.first[index])
                span = hidden[first : first + len(targets)]
                outputs[index].prompt_logprobs = self.sampler.prompt_logprobs(span, targets, wanted, self.model.logits)

    def _choose(self, batch: Batch, packed: Packed, hidden: Tensor, outputs: list[RowOutput]) -> None:
        """Sample for the rows that reached their last token; list candidates for those that are beams."""
        wanting = np.flatnonzero([row.wants_token for row in batch.rows])
        if not len(wanting):
            return
        last = torch.from_numpy(packed.first[wanting] + [batch.rows[i].count - 1 for i in wanting])
        logits = self.model.logits(hidden[last.to(hidden.device)])
        slots, ends = packed.slots[wanting], packed.ends[wanting]
        num_candidates = np.array([self.tables.sequences[slot].num_candidates for slot in slots.tolist()])
        beams, plain = np.flatnonzero(num_candidates), np.flatnonzero(num_candidates == 0)
        if len(beams):
            temperature = np.array([self.tables.sequences[slot].params.temperature for slot in slots[beams].tolist()])
            found = self.sampler.candidates(_take(logits, beams), num_candidates[beams], temperature)
            for index, candidates in zip(wanting[beams].tolist(), found, strict=True):
                outputs[index].candidates = candidates
                if not candidates:
                    outputs[index].error = UNSOUND
        if len(plain):
            sampled = self.sampler.sample(_take(logits, plain), slots[plain], ends[plain], self.tables.tokens)
            for position, index in enumerate(wanting[plain].tolist()):
                output = outputs[index]
                output.token, output.logprobs = sampled.tokens[position], sampled.logprobs[position]
                output.error = sampled.errors[position]
                self.tables.append(batch.rows[index].slot, int(packed.ends[index]), output.token)


def _take(logits: Tensor, rows: np.ndarray) -> Tensor:
    return logits if len(rows) == len(logits) else logits[torch.from_numpy(rows).to(logits.device)]
