"""Attention to another sequence, which was written before: against dense attention, and in any company."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from vllm.kv_cache.spec import Full
from vllm.ops import native
from vllm.ops.attention import AttentionOptions, Layout
from vllm.ops.attention_torch import TorchAttention
from vllm.ops.native.attention import NativeAttention

BLOCK = 16
CPU = torch.device("cpu")
OPTIONS = AttentionOptions(0.3, causal=False)


def backends() -> list[Any]:
    found: list[Any] = [pytest.param(TorchAttention(CPU), id="torch")]
    missing = pytest.mark.skipif(native.library() is None, reason="the native kernels are not built")
    found.append(pytest.param(NativeAttention(), id="native", marks=missing))
    try:
        from vllm.ops.triton.attention import TritonAttention
    except ImportError:
        return found
    return [*found, pytest.param(TritonAttention(CPU), id="triton")]


class Sources:
    """Keys and values of sources in blocks of their own."""

    def __init__(self, backend: Any, lengths: list[int], spec: Full) -> None:
        self.backend, self.lengths, self.spec = backend, lengths, spec
        blocks = [-(-length // BLOCK) for length in lengths]
        self.table = torch.zeros(len(lengths), max(blocks), dtype=torch.int32)
        for row, mine in enumerate((torch.randperm(sum(blocks)) + 1).split(blocks)):
            self.table[row, : len(mine)] = mine.int()
        self.k = [torch.randn(length, spec.kv_heads, spec.head_dim) for length in lengths]
        self.v = [torch.randn(length, spec.kv_heads, spec.value_dim) for length in lengths]
        self.cache = backend.allocate(spec, sum(blocks) + 1, BLOCK, torch.float32)
        self.plan = backend.plan(len(lengths), sum(lengths), self.table.shape[1])
        count = torch.tensor(lengths)
        self.plan.place(Layout(count.cumsum(0) - count, torch.zeros_like(count), count, self.table, BLOCK))
        backend.write(torch.cat(self.k), torch.cat(self.v), self.cache, self.plan)

    def read(self, queries: dict[int, Tensor]) -> list[Tensor]:
        rows = list(queries)
        count = torch.tensor([len(q) for q in queries.values()])
        lengths = torch.tensor(self.lengths)[rows]
        self.plan.place(Layout(count.cumsum(0) - count, lengths - count, count, self.table[rows], BLOCK))
        out = self.backend.attend(torch.cat(list(queries.values())), self.spec, self.cache, self.plan, OPTIONS)
        return list(out.split(count.tolist()))

    def expected(self, row: int, q: Tensor) -> Tensor:
        group = q.shape[1] // self.spec.kv_heads
        k, v = (x[row].double().repeat_interleave(group, 1) for x in (self.k, self.v))
        weights = (torch.einsum("qhe,khe->hqk", q.double(), k) * OPTIONS.scale).softmax(-1)
        return torch.einsum("hqk,khe->qhe", weights, v)


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("counts", [[1, 1, 1, 1], [1, 90, 3, 64], [7, 1, 40, 1]])
def test_all_queries_see_all_of_their_source(backend: Any, counts: list[int]) -> None:
    torch.manual_seed(0)
    sources = Sources(backend, [1, 16, 70, 200], Full(2, 24, 32))
    queries = {row: torch.randn(count, 6, 24) for row, count in enumerate(counts)}
    for (row, q), got in zip(queries.items(), sources.read(queries), strict=True):
        torch.testing.assert_close(got.double(), sources.expected(row, q), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", backends()[:2])
def test_a_query_gives_the_same_bits_in_any_company(backend: Any) -> None:
    torch.manual_seed(0)
    sources = Sources(backend, [130, 5, 1100], Full(2, 24, 24))
    queries = {row: torch.randn(20, 4, 24) for row in range(3)}
    together = sources.read(queries)
    for row, q in queries.items():
        singly = torch.cat([sources.read({row: q[index : index + 1]})[0] for index in range(len(q))])
        assert torch.equal(singly, together[row])
