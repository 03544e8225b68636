"""From hidden states to tokens: logits of the rows that reached their last token, sampling, log-probabilities."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from vllm.messages import Batch, RowOutput, Sequence
from vllm.sampling.rows import select
from vllm.sampling.sampler import UNSOUND, Choice, Sampler
from vllm.worker.forward import Logits
from vllm.worker.tables import Packed, SlotTables


class Generation:
    """Chooses next tokens."""

    def __init__(self, logits: Logits, tables: SlotTables, sampler: Sampler) -> None:
        self.logits = logits
        self.tables = tables
        self.sampler = sampler

    def admit(self, sequence: Sequence) -> None:
        """Take note of a sequence that got a slot."""
        self.sampler.admit(
            sequence.slot,
            sequence.params,
            seed=sequence.seed,
            eos_token_ids=sequence.eos_token_ids,
            bad_words_ids=sequence.bad_words_ids,
            num_prompt=sequence.num_prompt,
        )

    def release(self, slot: int) -> None:
        """Forget what a slot held."""
        self.sampler.release(slot)

    def start(self, batch: Batch, packed: Packed, hidden: Tensor) -> Callable[[], list[RowOutput]]:
        """Start to choose the tokens that the hidden states [T, D] of a batch bring, row for row."""
        outputs = [RowOutput() for _ in batch.rows]
        self._prompt_logprobs(batch, packed, hidden, outputs)
        chosen = self._choose(batch, packed, hidden, outputs)

        def finish() -> list[RowOutput]:
            if chosen is not None:
                rows, pending = chosen
                sampled = pending.result()
                for place, index in enumerate(rows):
                    output = outputs[index]
                    output.token, output.logprobs = sampled.tokens[place], sampled.logprobs[place]
                    output.error = sampled.errors[place]
            return outputs

        return finish

    def _prompt_logprobs(self, batch: Batch, packed: Packed, hidden: Tensor, outputs: list[RowOutput]) -> None:
        for index, row in enumerate(batch.rows):
            wanted = self.tables.sequences[row.slot].params.prompt_logprobs
            if wanted is not None:
                targets = self.tables.prompt_span(row)
                first = packed.last[index] - row.count + 1
                span = hidden[first : first + len(targets)]
                outputs[index].prompt_logprobs = self.sampler.prompt_logprobs(span, targets, wanted, self.logits.head)

    def _choose(
        self, batch: Batch, packed: Packed, hidden: Tensor, outputs: list[RowOutput]
    ) -> tuple[list[int], Choice] | None:
        """Sample for the rows that reached their last token; list candidates for those that are beams."""
        wanting = [index for index, row in enumerate(batch.rows) if row.wants_token]
        if not wanting:
            return None
        last = [packed.last[index] for index in wanting]
        counts = [self.tables.sequences[batch.rows[index].slot].num_candidates for index in wanting]
        slots = [batch.rows[index].slot for index in wanting]
        if self.logits.is_gathered and not any(counts) and not self.sampler.asks(slots):
            return wanting, self._keep(batch, wanting, self.sampler.settle(*self.logits.greatest(hidden, last)))
        logits = self.logits.compute(hidden, last)
        beams = [place for place, count in enumerate(counts) if count]
        plain = [place for place, count in enumerate(counts) if not count]
        if beams:
            self._list_candidates(batch, [wanting[place] for place in beams], select(logits, beams), outputs)
        if not plain:
            return None
        rows = [wanting[place] for place in plain]
        return rows, self._sample(batch, rows, select(logits, plain))

    def _list_candidates(self, batch: Batch, rows: list[int], logits: Tensor, outputs: list[RowOutput]) -> None:
        """Find the tokens that beams may go on with.  …, [n], [n, V]"""
        sequences = [self.tables.sequences[batch.rows[index].slot] for index in rows]
        counts = np.array([sequence.num_candidates for sequence in sequences])
        temperature = np.array([sequence.params.temperature for sequence in sequences])
        for index, candidates in zip(rows, self.sampler.candidates(logits, counts, temperature), strict=True):
            outputs[index].candidates = candidates
            if not candidates:
                outputs[index].error = UNSOUND

    def _sample(self, batch: Batch, rows: list[int], logits: Tensor) -> Choice:
        """Choose the rows' next tokens, and write them behind those they have.  …, [n], [n, V]"""
        return self._keep(batch, rows, self.sampler.sample(logits, *_ends(batch, rows), self.tables.tokens))

    def _keep(self, batch: Batch, rows: list[int], choice: Choice) -> Choice:
        """Write the rows' tokens behind those they have."""
        self.tables.store.append(*_ends(batch, rows), choice.tokens)
        return choice


def _ends(batch: Batch, rows: list[int]) -> tuple[list[int], list[int]]:
    """Return the slots of rows, and how many tokens they have."""
    slots = [batch.rows[index].slot for index in rows]
    return slots, [batch.rows[index].start + batch.rows[index].count for index in rows]
