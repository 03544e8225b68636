"""Computes batches: slots → buffers → model → sampler → StepOutput.  It decides nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from vllm.kv_cache.spec import CacheGroup
from vllm.layers.step import Step
from vllm.layers.transformer import Transformer
from vllm.messages import Batch, RowOutput, StepOutput
from vllm.ops.attention import AttentionBackend
from vllm.sampling.rows import select
from vllm.sampling.sampler import UNSOUND, Sampler
from vllm.worker.forward import Forward
from vllm.worker.tables import Packed, SlotTables


class ModelRunner:
    """A model with its cache, on one device."""

    def __init__(
        self,
        model: Transformer,
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
        self.tables = tables
        self.sampler = sampler
        self.plans = tuple(backend.plan() for _ in groups)
        group_of = [next(g for g, group in enumerate(groups) if i in group.layers) for i in range(len(caches))]
        step = Step(tables.token_ids, tables.positions, self.plans, caches, tuple(group_of), backend)
        self.forward = Forward(model, step, max_rows=tables.num_slots)

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
        packed = self.tables.pack(batch, self.plans)
        hidden = self.forward.hidden(packed.num_tokens)
        outputs = [RowOutput() for _ in batch.rows]
        self._prompt_logprobs(batch, packed, hidden, outputs)
        self._choose(batch, packed, hidden, outputs)
        return StepOutput(batch.step, outputs)

    def _prompt_logprobs(self, batch: Batch, packed: Packed, hidden: Tensor, outputs: list[RowOutput]) -> None:
        for index, row in enumerate(batch.rows):
            wanted = self.tables.sequences[row.slot].params.prompt_logprobs
            if wanted is not None:
                targets = self.tables.prompt_span(row)
                first = packed.last[index] - row.count + 1
                span = hidden[first : first + len(targets)]
                outputs[index].prompt_logprobs = self.sampler.prompt_logprobs(span, targets, wanted, self.model.logits)

    def _choose(self, batch: Batch, packed: Packed, hidden: Tensor, outputs: list[RowOutput]) -> None:
        """Sample for the rows that reached their last token; list candidates for those that are beams."""
        wanting = [index for index, row in enumerate(batch.rows) if row.wants_token]
        if not wanting:
            return
        logits = self.forward.logits(hidden, [packed.last[index] for index in wanting])
        counts = [self.tables.sequences[batch.rows[index].slot].num_candidates for index in wanting]
        beams = [place for place, count in enumerate(counts) if count]
        plain = [place for place, count in enumerate(counts) if not count]
        if beams:
            self._list_candidates(batch, [wanting[place] for place in beams], select(logits, beams), outputs)
        if plain:
            self._sample(batch, [wanting[place] for place in plain], select(logits, plain), outputs)

    def _list_candidates(self, batch: Batch, rows: list[int], logits: Tensor, outputs: list[RowOutput]) -> None:
        """Find the tokens that beams may go on with.  …, [n], [n, V]"""
        sequences = [self.tables.sequences[batch.rows[index].slot] for index in rows]
        counts = np.array([sequence.num_candidates for sequence in sequences])
        temperature = np.array([sequence.params.temperature for sequence in sequences])
        for index, candidates in zip(rows, self.sampler.candidates(logits, counts, temperature), strict=True):
            outputs[index].candidates = candidates
            if not candidates:
                outputs[index].error = UNSOUND

    def _sample(self, batch: Batch, rows: list[int], logits: Tensor, outputs: list[RowOutput]) -> None:
        """Choose the rows' next tokens, and write them behind those they have.  …, [n], [n, V]"""
        slots = [batch.rows[index].slot for index in rows]
        ends = [batch.rows[index].start + batch.rows[index].count for index in rows]
        sampled = self.sampler.sample(logits, slots, ends, self.tables.tokens)
        for place, index in enumerate(rows):
            output = outputs[index]
            output.token, output.logprobs = sampled.tokens[place], sampled.logprobs[place]
            output.error = sampled.errors[place]
            self.tables.append(slots[place], ends[place], output.token)
