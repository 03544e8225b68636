"""A worker without tensors: its cache holds token ids, so that whatever the scheduler confuses shows at once.

Computing a token means writing its id into the block that the table names.  Before the next token is chosen, every
position that attention would read is read back through the tables and compared with the sequence itself.  A state is all the
tokens that it remembers.  What is kept of a medium's token says which medium it is of.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

from vllm.kv_cache.spec import CacheSpec, Chunk, State, Window
from vllm.messages import Batch, Media, Pooled, Row, RowOutput, Sequence, StepOutput

VOCAB = 11
Content = int | tuple[int, bytes, tuple[bytes, ...]]
"""A token, or one with the key of the medium in whose place it is, and those of the media that all tokens attend to"""


def content(tokens: list[int], media: list[Media]) -> list[Content]:
    """What a model makes of tokens."""
    keys = {place: one.key for one in media for first, end in one.spans for place in range(first, end)}
    lasting = tuple(one.key for one in media if one.length)
    return [
        (token, keys.get(place, b""), lasting) if lasting or place in keys else token
        for place, token in enumerate(tokens)
    ]


def next_token(tokens: list[Content], seed: int = 0) -> int:
    """What the toy model says after `tokens`."""
    return hashlib.sha256(repr((tokens, seed)).encode()).digest()[0] % VOCAB


def candidates(tokens: list[Content], count: int) -> list[tuple[int, float]]:
    """The toy model's most likely next tokens."""
    weights = [hashlib.sha256(repr((tokens, token)).encode()).digest()[0] / 64 + 0.1 for token in range(VOCAB)]
    ranked = sorted(range(VOCAB), key=lambda token: (weights[token], token))
    return [(token, -weights[token]) for token in ranked[:count]]


def generate(
    prompt: list[int], max_tokens: int, seed: int = 0, end: int | None = None, media: list[Media] | None = None
) -> list[int]:
    """The reference: one sequence, alone, without a cache."""
    tokens = list(prompt)
    for _ in range(max_tokens):
        tokens.append(next_token(content(tokens, media or []), seed))
        if tokens[-1] == end:
            break
    return tokens[len(prompt) :]


@dataclass
class Slot:
    sequence: Sequence
    tokens: list[int]
    tables: list[list[int]] = field(default_factory=list)

    @property
    def content(self) -> list[Content]:
        return content(self.tokens, self.sequence.media)


class FakeWorker:
    def __init__(self, specs: list[CacheSpec], num_blocks: list[int], block_size: int) -> None:
        self.specs, self.block_size = specs, block_size
        self.memory: list[list[list[Any]]] = [[[-1] * block_size for _ in range(count)] for count in num_blocks]
        self.slots: dict[int, Slot] = {}
        self.encoded: dict[bytes, int] = {}
        self.num_encoded = 0

    def execute(self, batch: Batch) -> StepOutput:
        for slot in batch.released:
            del self.slots[slot]
        for sequence in batch.admitted:
            assert sequence.slot not in self.slots, "a slot was given to two sequences"
            self.slots[sequence.slot] = Slot(sequence, list(sequence.token_ids), [[] for _ in self.specs])
        for key in batch.forget:
            del self.encoded[key]
        for job in batch.encode:
            one = self.slots[job.slot].sequence.media[job.index]
            assert one.key not in self.encoded, "a medium was encoded twice"
            self.encoded[one.key] = one.count
            self.num_encoded += 1
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
        known = slot.content
        for one in known[row.start : end]:
            needed = set() if isinstance(one, int) else {one[1], *one[2]} - {b""}
            assert needed <= self.encoded.keys(), "a medium that is needed was not encoded"
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
                self.memory[group][block][position % self.block_size] = known[position]

    def advance(self, slot: Slot, group: int, row: Row) -> None:
        """Go on from the state before the row; leave states at the borders that have a block, and at the end."""
        table, memory, size, end = slot.tables[group], self.memory[group], self.block_size, row.start + row.count
        if row.start:
            held = memory[table[(row.start - 1) // size]]
            assert held == slot.content[: row.start], f"group {group}: {held} is not the state before {row.start}"
        for index in range(row.start // size, -(-end // size)):
            if table[index] != 0:
                memory[table[index]] = slot.content[: min(end, (index + 1) * size)]
        assert table[(end - 1) // size] != 0, "a state was written to the null block"

    def read(self, row: Row) -> RowOutput:
        slot = self.slots[row.slot]
        end, known = row.start + row.count, slot.content
        for group, spec in enumerate(self.specs):
            if isinstance(spec, State):
                continue
            first = max(0, row.start - spec.size + 1) if isinstance(spec, Window) else 0
            if isinstance(spec, Chunk):
                first = row.start - row.start % spec.size
            for position in range(first, end):
                block = slot.tables[group][position // self.block_size]
                held = self.memory[group][block][position % self.block_size]
                assert held == known[position], f"group {group} position {position}: {held} is not {known[position]}"
        if not row.wants_token:
            return RowOutput()
        known = known[:end]
        if slot.sequence.pooling is not None:
            return RowOutput(pooled=Pooled((1,), bytes([sum(slot.tokens[:end]) % 256])))
        if slot.sequence.num_candidates:
            return RowOutput(candidates=candidates(known, slot.sequence.num_candidates))
        token = next_token(known, slot.sequence.seed)
        slot.tokens[end:] = [token]
        return RowOutput(token=token)
