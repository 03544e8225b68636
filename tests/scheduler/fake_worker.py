"""A worker without tensors: its cache holds token ids, so that whatever the scheduler confuses shows at once.

Computing a token means writing its id into the block that the table names.  Before the next token is chosen, every
position that attention would read is read back through the tables and compared with the sequence itself.  A state is all the
tokens that it remembers.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from vllm.kv_cache.spec import CacheSpec, State, Window
from vllm.messages import Batch, Pooled, Row, RowOutput, Sequence, StepOutput

VOCAB = 11


def next_token(tokens: list[int], seed: int = 0) -> int:
    """What the toy model says after `tokens`."""
    return hashlib.sha256(repr((tokens, seed)).encode()).digest()[0] % VOCAB


def candidates(tokens: list[int], count: int) -> list[tuple[int, float]]:
    """The toy model's most likely next tokens."""
    weights = [hashlib.sha256(repr((tokens, token)).encode()).digest()[0] / 64 + 0.1 for token in range(VOCAB)]
    ranked = sorted(range(VOCAB), key=lambda token: (weights[token], token))
    return [(token, -weights[token]) for token in ranked[:count]]


def generate(prompt: list[int], max_tokens: int, seed: int = 0, end: int | None = None) -> list[int]:
    """The reference: one sequence, alone, without a cache."""
    tokens = list(prompt)
    for _ in range(max_tokens):
        tokens.append(next_token(tokens, seed))
        if tokens[-1] == end:
            break
    return tokens[len(prompt) :]


@dataclass
class Slot:
    sequence: Sequence
    tokens: list[int]
    tables: list[list[int]] = field(default_factory=list)


class FakeWorker:
    def __init__(self, specs: list[CacheSpec], num_blocks: list[int], block_size: int) -> None:
        self.specs, self.block_size = specs, block_size
        self.memory: list[list[list[int]]] = [[[-1] * block_size for _ in range(count)] for count in num_blocks]
        self.slots: dict[int, Slot] = {}

    def execute(self, batch: Batch) -> StepOutput:
        for slot in batch.released:
            del self.slots[slot]
        for sequence in batch.admitted:
            assert sequence.slot not in self.slots, "a slot was given to two sequences"
            self.slots[sequence.slot] = Slot(sequence, list(sequence.token_ids), [[] for _ in self.specs])
        for copy in batch.copies:
            self.memory[copy.group][copy.target] = list(self.memory[copy.group][copy.source])
        for row in batch.rows:
            self.write(row)
        return StepOutput(batch.step, [self.read(row) for row in batch.rows])

    def write(self, row: Row) -> None:
        slot = self.slots[row.slot]
        end = row.start + row.count
        if row.tokens:
            slot.tokens[end - len(row.tokens) : end] = row.tokens
        for group, blocks in enumerate(row.new_blocks):
            slot.tables[group] += blocks
            for index in range(row.stale[group] if row.stale else 0):
                slot.tables[group][index] = 0
            if isinstance(self.specs[group], State):
                self.advance(slot, group, row)
                continue
            for position in range(row.start, end):
                block = slot.tables[group][position // self.block_size]
                assert block != 0, "a token was written to the null block"
                self.memory[group][block][position % self.block_size] = slot.tokens[position]

    def advance(self, slot: Slot, group: int, row: Row) -> None:
        """Go on from the state before the row; leave states at the borders that have a block, and at the end."""
        table, memory, size, end = slot.tables[group], self.memory[group], self.block_size, row.start + row.count
        if row.start:
            held = memory[table[(row.start - 1) // size]]
            assert held == slot.tokens[: row.start], f"group {group}: {held} is not the state before {row.start}"
        for index in range(row.start // size, -(-end // size)):
            if table[index] != 0:
                memory[table[index]] = slot.tokens[: min(end, (index + 1) * size)]
        assert table[(end - 1) // size] != 0, "a state was written to the null block"

    def read(self, row: Row) -> RowOutput:
        slot = self.slots[row.slot]
        end = row.start + row.count
        for group, spec in enumerate(self.specs):
            if isinstance(spec, State):
                continue
            first = max(0, row.start - spec.size + 1) if isinstance(spec, Window) else 0
            for position in range(first, end):
                block = slot.tables[group][position // self.block_size]
                held = self.memory[group][block][position % self.block_size]
                assert held == slot.tokens[position], (
                    f"group {group} position {position}: {held} is not {slot.tokens[position]}"
                )
        if not row.wants_token:
            return RowOutput()
        known = slot.tokens[:end]
        if slot.sequence.pooling is not None:
            return RowOutput(pooled=Pooled((1,), bytes([sum(known) % 256])))
        if slot.sequence.num_candidates:
            return RowOutput(candidates=candidates(known, slot.sequence.num_candidates))
        token = next_token(known, slot.sequence.seed)
        slot.tokens[end:] = [token]
        return RowOutput(token=token)
