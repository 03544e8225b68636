"""Tokens of media that see each other, all of a run or those of its parts, with each backend."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.ops.paged import Paged, Shape, _views_of_one_buffer
from vllm.ops import native
from vllm.ops.attention import AttentionBackend, Layout
from vllm.ops.attention_torch import TorchAttention
from vllm.ops.native.attention import NativeAttention
from vllm.ops.triton.attention import TritonAttention

Runs = list[tuple[int, int]]
RUNS: list[tuple[int, Runs]] = [
    (300, [(5, 40), (90, 130), (131, 220)]),
    (33, []),
    (1500, [(10, 600), (900, 1300)]),
    (70, [(0, 70)]),
]
"""Length of a sequence, and which of its tokens see each other"""
SHAPES = [Shape(4, 2, 16), Shape(6, 1, 16, softcap=2.0, value_dim=18)]
BACKENDS = [TorchAttention(torch.device("cpu"))] + ([NativeAttention()] if native.library() else [])


@pytest.fixture(autouse=True)
def _a_seed() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def step(paged: Paged, ranges: dict[int, tuple[int, int]]) -> dict[int, Tensor]:
    """Compute tokens [start, end) of some of the sequences.  Row -> [count, H, Ev]"""
    media, apart = [], []
    for row, (start, end) in ranges.items():
        within = RUNS[row][1]
        runs = torch.stack((torch.arange(start, end), torch.arange(start, end) + 1), dim=1)
        alone = torch.full((end - start,), bool(within), dtype=torch.uint8)
        if within:
            runs[max(0, within[0][0] - start) : max(0, within[-1][1] - start)] = torch.tensor(
                [within[0][0], within[-1][1]]
            )
        for first, stop in within:
            alone[max(0, first - start) : max(0, stop - start)] = 0
        media.append(runs)
        apart.append(alone)
    rows = list(ranges)
    start = torch.tensor([ranges[row][0] for row in rows])
    count = torch.tensor([ranges[row][1] for row in rows]) - start
    parts = [torch.cat([paged.sequences[row][which][slice(*ranges[row])] for row in rows]) for which in range(3)]
    places = (count.cumsum(0) - count, start, count, paged.table[rows], paged.shape.block_size)
    paged.plan.place(Layout(*places, torch.cat(media), torch.cat(apart)))
    out = paged.backend.run(*_views_of_one_buffer(parts), paged.cache, paged.plan, paged.shape.options)
    return dict(zip(rows, out.split(count.tolist()), strict=True))


def expected(shape: Shape, q: Tensor, k: Tensor, v: Tensor, within: Runs) -> Tensor:
    """Dense attention, in float64.  -> [L, H, Ev]"""
    group = shape.heads // shape.kv_heads
    k, v = k.double().repeat_interleave(group, 1), v.double().repeat_interleave(group, 1)
    scores = torch.einsum("qhe,khe->hqk", q.double(), k) * shape.options.scale
    if shape.softcap:
        scores = shape.softcap * torch.tanh(scores / shape.softcap)
    places = torch.arange(len(q))
    behind = places[:, None] - places
    marked = torch.zeros(len(q), dtype=torch.bool)
    for first, stop in within:
        marked[first:stop] = True
    visible = (behind >= 0) | (marked[:, None] & marked)
    weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khe->qhe", weights, v)


@pytest.mark.parametrize(
    "backend, shape",
    [*itertools.product(BACKENDS, SHAPES), (TritonAttention(torch.device("cpu")), SHAPES[1])],
    ids=lambda value: str(value) if isinstance(value, Shape) else type(value).__name__,
)
def test_tokens_of_media_see_each_other_and_not_what_is_between(backend: AttentionBackend, shape: Shape) -> None:
    paged = Paged(backend, shape, [shape.draw(length, torch.float32) for length, _ in RUNS])
    found = step(paged, {row: (0, length) for row, (length, _) in enumerate(RUNS)})
    for row, (_, within) in enumerate(RUNS):
        sequence = paged.sequences[row]
        torch.testing.assert_close(found[row].double(), expected(shape, *sequence, within), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: type(backend).__name__)
def test_company_and_cuts_change_no_bit(backend: AttentionBackend, dtype: torch.dtype) -> None:
    shape = SHAPES[0]
    paged = Paged(backend, shape, [shape.draw(length, dtype) for length, _ in RUNS])
    together = step(paged, {row: (0, length) for row, (length, _) in enumerate(RUNS)})
    for row, (length, within) in enumerate(RUNS):
        begin, end = (within[0][0], within[-1][1]) if within else (7, 9)
        cuts = [0, begin // 2, begin, end, end + (length - end) // 2, length]
        parts = [step(paged, {row: cut})[row] for cut in zip(cuts[:-1], cuts[1:], strict=True) if cut[0] < cut[1]]
        assert torch.equal(torch.cat(parts), together[row])
