"""Attention of heads that see some blocks of tokens: against dense attention, in any steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ops.test_sources import backends
from vllm.errors import ConfigError
from vllm.kv_cache.spec import BlockPattern, Blocks
from vllm.ops.attention import AttentionOptions, Layout
from vllm.ops.attention_blocks import BlocksCache, BlocksPlan
from vllm.ops.attention_torch import TorchAttention

BLOCK, HEADS, KV_HEADS, HEAD_DIM, VALUE_DIM = 16, 6, 2, 16, 8
LENGTHS = (300, 1, 33, 160)
STEPS = ([300], [32], [11], [7, 130, 2, 140], [31, 1, 1, 33])
PATTERNS = [
    BlockPattern(32, 2, 3, (2, 1, 0, 2, 1, 0)),
    BlockPattern(16, 1, 4, (3, 2, 1, 0, 3, 2)),
    BlockPattern(16, 3, 2, (1,) * 6),  # all heads alike
    BlockPattern(64, 16, 8, (7, 6, 5, 4, 3, 2)),  # all that there is
]


def seen(pattern: BlockPattern, length: int) -> Tensor:
    """Return what each head sees, from its definition.  -> [H, L, L]"""
    place = torch.arange(length)
    query, key = (place // pattern.size)[:, None], place // pattern.size
    phases = torch.tensor(pattern.phases)[:, None, None]
    return (place[:, None] >= place) & ((query - key < pattern.local) | (key % pattern.stride == phases))


def dense(pattern: BlockPattern, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of one sequence, in float64.  [L, H, E], [L, G, E], [L, G, Ev] -> [L, H, Ev]"""
    k, v = (part.double().repeat_interleave(HEADS // KV_HEADS, 1) for part in (k, v))
    scores = torch.einsum("qhe,khe->hqk", q.double(), k) * 0.3
    weights = scores.masked_fill(~seen(pattern, len(q)), -torch.inf).softmax(-1)
    return torch.einsum("hqk,khe->qhe", weights, v)


class Sequences:
    """Sequences in shuffled blocks."""

    def __init__(self, backend: Any, pattern: BlockPattern, dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(0)
        sizes = ((HEADS, HEAD_DIM), (KV_HEADS, HEAD_DIM), (KV_HEADS, VALUE_DIM))
        self.each = [[torch.randn(length, *size).to(dtype) for size in sizes] for length in LENGTHS]
        self.spec = Blocks(KV_HEADS, HEAD_DIM, VALUE_DIM, pattern)
        self.backend, self.made = backend, BlocksCache(backend, self.spec)
        blocks = [-(-length // BLOCK) for length in LENGTHS]
        self.table = torch.zeros(len(LENGTHS), max(blocks), dtype=torch.int32)
        for row, mine in enumerate((torch.randperm(sum(blocks)) + 1).split(blocks)):
            self.table[row, : len(mine)] = mine.int()
        self.cache = self.made.allocate(self.spec, sum(blocks) + 2, BLOCK, dtype)
        self.plan: BlocksPlan = self.made.plan(len(LENGTHS), sum(LENGTHS), max(blocks))

    def run(self, sizes: list[int]) -> list[Tensor]:
        """Compute all sequences side by side in steps of the given sizes, the last one again and again."""
        found: list[list[Tensor]] = [[] for _ in LENGTHS]
        done, step = 0, 0
        while done < max(LENGTHS):
            size = sizes[min(step, len(sizes) - 1)]
            rows = [row for row, length in enumerate(LENGTHS) if done < length]
            for row, part in zip(rows, self.step(rows, done, size), strict=True):
                found[row].append(part)
            done, step = done + size, step + 1
        return [torch.cat(parts) for parts in found]

    def step(self, rows: list[int], start: int, size: int) -> list[Tensor]:
        parts = [[part[start : start + size] for part in self.each[row]] for row in rows]
        count = torch.tensor([len(q) for q, _, _ in parts])
        width = int(-(-(start + count.max()) // BLOCK))
        table = self.table[rows, :width]
        self.plan.place(Layout(count.cumsum(0) - count, torch.full_like(count, start), count, table, BLOCK))
        q, k, v = (torch.cat(part) for part in zip(*parts, strict=True))
        out = self.plan.run(self.backend, (q, k, v), self.cache, AttentionOptions(0.3))
        return list(out.split(count.tolist()))


@pytest.mark.parametrize("backend", backends()[:2])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_each_head_sees_its_blocks(backend: Any, pattern: BlockPattern) -> None:
    sequences = Sequences(backend, pattern)
    for sizes in (STEPS[0], STEPS[3]):
        for got, (q, k, v) in zip(sequences.run(sizes), sequences.each, strict=True):
            torch.testing.assert_close(got.double(), dense(pattern, q, k, v), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", backends()[2:])
def test_a_gpus_kernels_see_the_same(backend: Any) -> None:
    sequences = Sequences(backend, PATTERNS[0])
    for got, (q, k, v) in zip(sequences.run([155]), sequences.each, strict=True):
        torch.testing.assert_close(got.double(), dense(PATTERNS[0], q, k, v), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", backends()[:2])
@pytest.mark.parametrize("pattern", PATTERNS[:2], ids=str)
def test_the_bits_do_not_depend_on_the_steps(backend: Any, pattern: BlockPattern, dtype: torch.dtype) -> None:
    whole = Sequences(backend, pattern, dtype).run(STEPS[0])
    for sizes in STEPS[1:]:
        cut = Sequences(backend, pattern, dtype).run(sizes)
        assert all(torch.equal(one, other) for one, other in zip(whole, cut, strict=True)), f"steps of {sizes}"


@pytest.mark.parametrize("backend", backends()[:2])
def test_a_copied_block_holds_the_same(backend: Any) -> None:
    sequences = Sequences(backend, PATTERNS[1])
    expected = sequences.run([300])[3]
    source, target = int(sequences.table[3, 9]), int(sequences.table.max()) + 1
    sequences.made.copy_block(sequences.cache, source, target)
    sequences.table[3, 9] = target
    assert torch.equal(sequences.step([3], 155, 5)[0], expected[155:])


def test_blocks_that_a_pattern_does_not_begin_with_are_refused() -> None:
    spec = Blocks(2, 8, 8, BlockPattern(24, 1, 2, (0, 1)))
    with pytest.raises(ConfigError, match="block_size=16 doesn't divide the 24 tokens"):
        BlocksCache(TorchAttention(torch.device("cpu")), spec).allocate(spec, 2, BLOCK, torch.float32)
