"""Attention within chunks of tokens: against dense attention, in any steps, with what is behind a chunk's border gone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ops.paged import Shape, reference
from tests.ops.test_sources import backends
from vllm.errors import ConfigError
from vllm.kv_cache.spec import Chunk
from vllm.ops.attention import AttentionOptions, Layout
from vllm.ops.attention_chunks import ChunkedCache, ChunkedPlan
from vllm.ops.attention_torch import TorchAttention

BLOCK, SIZE = 16, 32
LENGTHS = (100, 1, 33, 64)
SHAPE = Shape(4, 2, 16)
SPEC = Chunk(2, 16, 16, SIZE)
BEFORE = (0, 1, 2)
STEPS = ([100], [32], [11], [7, 30, 2, 40], [31, 1, 1, 33])


class Chunked:
    """Sequences in shuffled blocks."""

    def __init__(self, backend: Any, before: int) -> None:
        torch.manual_seed(0)
        self.spec = replace(SPEC, before=before)
        self.backend, made = backend, ChunkedCache(backend, SIZE, before)
        self.sequences = [SHAPE.draw(length, torch.float32) for length in LENGTHS]
        blocks = [-(-length // BLOCK) for length in LENGTHS]
        self.table = torch.zeros(len(LENGTHS), max(blocks), dtype=torch.int32)
        for row, mine in enumerate((torch.randperm(sum(blocks)) + 1).split(blocks)):
            self.table[row, : len(mine)] = mine.int()
        self.cache = made.allocate(self.spec, sum(blocks) + 1, BLOCK, torch.float32)
        self.plan: ChunkedPlan = made.plan(len(LENGTHS), sum(LENGTHS), max(blocks))

    def run(self, sizes: list[int]) -> list[Tensor]:
        """Compute all sequences side by side in steps of the given sizes, the last one again and again."""
        found: list[list[Tensor]] = [[] for _ in LENGTHS]
        done, step = 0, 0
        while done < max(LENGTHS):
            size = sizes[min(step, len(sizes) - 1)]
            rows = [row for row, length in enumerate(LENGTHS) if done < length]
            for row in rows:
                self.table[row, : self.spec.num_stale(done, BLOCK)] = 0
            parts = [[part[done : done + size] for part in self.sequences[row]] for row in rows]
            count = torch.tensor([len(q) for q, _, _ in parts])
            start = torch.full_like(count, done)
            self.plan.place(Layout(count.cumsum(0) - count, start, count, self.table[rows], BLOCK))
            q, k, v = (torch.cat(part) for part in zip(*parts, strict=True))
            options = AttentionOptions(SHAPE.options.scale)
            out = self.backend.run(q, k, v, self.cache, self.plan.pieces, options)
            for row, part in zip(rows, out.split(count.tolist()), strict=True):
                found[row].append(part)
            done, step = done + size, step + 1
        return [torch.cat(parts) for parts in found]


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("sizes", STEPS, ids=str)
def test_a_token_sees_its_chunk_up_to_itself_and_those_before(backend: Any, sizes: list[int], before: int) -> None:
    chunked = Chunked(backend, before)
    for got, sequence in zip(chunked.run(sizes), chunked.sequences, strict=True):
        for begin in range(0, len(got), SIZE):
            first, end = max(0, begin - before * SIZE), begin + SIZE
            expected = reference(SHAPE, *(part[first:end] for part in sequence))[begin - first :]
            torch.testing.assert_close(got[begin:end].double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("backend", backends()[:2])
@pytest.mark.parametrize("sizes", STEPS[1:], ids=str)
def test_the_bits_do_not_depend_on_the_steps(backend: Any, sizes: list[int], before: int) -> None:
    whole, cut = Chunked(backend, before).run(STEPS[0]), Chunked(backend, before).run(sizes)
    assert all(torch.equal(one, other) for one, other in zip(whole, cut, strict=True))


def test_blocks_that_chunks_do_not_begin_with_are_refused() -> None:
    with pytest.raises(ConfigError, match="block_size=16 doesn't divide the 24 tokens"):
        ChunkedCache(TorchAttention(torch.device("cpu")), 24).allocate(SPEC, 2, BLOCK, torch.float32)
