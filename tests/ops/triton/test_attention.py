"""Paged attention for GPUs, against dense attention."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.paged import Paged, Shape, reference
from tests.ops.triton import DEVICE
from vllm.kv_cache.spec import Full
from vllm.ops.attention import MOST_RECORDED, Form, Layout
from vllm.ops.attention_torch import TorchAttention
from vllm.ops.triton.attention import TritonAttention

pytestmark = pytest.mark.usefixtures("all_there")


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    kv_heads, group = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 3, 4, 7, 20]))
    causal = draw(st.booleans())
    return Shape(
        kv_heads * group,
        kv_heads,
        draw(st.sampled_from([16, 18, 24, 64])),
        window=draw(st.none() | st.integers(1, 90)),
        softcap=draw(st.sampled_from([0.0, 2.0])),
        block_size=draw(st.sampled_from([8, 16, 32])),
        sinks=draw(st.booleans()),
        alibi=draw(st.booleans()),
        causal=causal,
        reach=draw(st.none() | st.integers(1, 20)),
    )


@given(
    shape=shapes(),
    pieces=st.lists(st.lists(st.integers(1, 70), min_size=1, max_size=3), min_size=1, max_size=3),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_any_mix_of_steps_agrees_with_dense_attention(
    shape: Shape, pieces: list[list[int]], dtype: torch.dtype, seed: int
) -> None:
    """Each sequence comes in pieces, the first pieces of all in one step, then the second ones of those that have any …"""
    torch.manual_seed(seed)
    if not shape.causal:
        pieces = [[sum(sizes)] for sizes in pieces]
    paged = Paged(TritonAttention(DEVICE), shape, [shape.draw(sum(sizes), dtype) for sizes in pieces])
    got: list[list[torch.Tensor]] = [[] for _ in pieces]
    for number in range(3):
        ranges = {
            row: (sum(sizes[:number]), sum(sizes[: number + 1]))
            for row, sizes in enumerate(pieces)
            if number < len(sizes)
        }
        for row, part in paged.step(ranges).items() if ranges else ():
            got[row].append(part)
    tolerance = 2e-5 if dtype == torch.float32 else 4e-3
    for parts, sequence in zip(got, paged.sequences, strict=True):
        expected = reference(shape, *sequence)
        torch.testing.assert_close(torch.cat(parts).double(), expected, rtol=tolerance, atol=tolerance)


def test_a_long_walk_is_split_and_joined() -> None:
    shape = Shape(4, 1, 32, sinks=True)
    paged = Paged(TritonAttention(DEVICE), shape, [shape.draw(700, torch.float32)])
    paged.step({0: (0, 699)})
    last = paged.step({0: (699, 700)})[0]
    torch.testing.assert_close(last[0].double(), reference(shape, *paged.sequences[0])[-1], rtol=1e-5, atol=1e-5)


def test_it_refuses_in_words() -> None:
    backend = TritonAttention(DEVICE)
    assert backend.refuses(Full(1, 64, 64), torch.float16, 16) is None
    assert "int8" in (backend.refuses(Full(1, 64, 64), torch.float16, 16, quantized=True) or "")
    assert "1024" in (backend.refuses(Full(1, 1024, 64), torch.float16, 16) or "")


@pytest.mark.parametrize("width", [160, 300])
def test_wide_heads_fit_too(width: int) -> None:
    shape = Shape(4, 2, width)
    paged = Paged(TritonAttention(DEVICE), shape, [shape.draw(70, torch.float32)])
    torch.testing.assert_close(
        paged.whole(0, [60, 1]).double(), reference(shape, *paged.sequences[0]), rtol=1e-5, atol=1e-5
    )


def test_a_group_of_more_heads_than_a_tile_has_rows_is_cut() -> None:
    shape = Shape(150, 1, 160, value_dim=64, latent=True)
    paged = Paged(TritonAttention(DEVICE), shape, [shape.draw(40, torch.float32)])
    got = torch.cat([paged.step({0: (0, 38)})[0], paged.step({0: (38, 39)})[0], paged.step({0: (39, 40)})[0]])
    torch.testing.assert_close(got.double(), reference(shape, *paged.sequences[0]), rtol=1e-5, atol=1e-5)


def test_what_is_behind_a_steps_tokens_is_left_alone() -> None:
    """A recorded step computes more tokens than there are."""
    shape = Shape(4, 2, 32)
    backend = TritonAttention(DEVICE)
    paged = Paged(backend, shape, [shape.draw(90, torch.float32) for _ in range(3)])
    paged.step({0: (0, 60), 1: (0, 35)})
    for ranges in ({0: (60, 61), 1: (35, 90), 2: (0, 7)}, {0: (61, 90), 2: (7, 8)}):
        before = [part.clone() for part in (paged.cache.keys, paged.cache.values)]
        got = paged.step(ranges)
        after = [part.clone() for part in (paged.cache.keys, paged.cache.values)]
        assert paged.plan.form is Form.MIXED
        paged.cache.keys.copy_(before[0])
        paged.cache.values.copy_(before[1])
        parts = [torch.cat([paged.sequences[row][i][slice(*ends)] for row, ends in ranges.items()]) for i in range(3)]
        padded = [torch.cat([part, torch.full((70, *part.shape[1:]), 9.0)]) for part in parts]
        found = backend.run(*padded, paged.cache, paged.plan, shape.options)
        assert torch.equal(found[: len(parts[0])], torch.cat(list(got.values())))
        for part, expected in zip((paged.cache.keys, paged.cache.values), after, strict=True):
            torch.testing.assert_close(part, expected, rtol=0, atol=0, equal_nan=True)


def test_some_steps_have_no_form() -> None:
    plan = TritonAttention(DEVICE).plan(50, 5000, 400)

    def form(*rows: tuple[int, int]) -> Form | None:
        start, count = torch.tensor(rows, device="cpu").T
        plan.place(
            Layout(
                count.cumsum(0) - count, start, count, torch.zeros(len(rows), 400, dtype=torch.int32, device="cpu"), 16
            )
        )
        return plan.form

    assert form((5, 1), (6000, 1)) is Form.SINGLES
    assert form((0, 1), (0, 500)) is Form.MIXED
    assert form((6000, 1), (0, 500)) is None  # a long walk
    assert form((0, MOST_RECORDED + 1)) is None  # many tokens
    assert form(*[(0, 2)] * 40) is None  # many long rows


@given(
    shape=shapes().filter(lambda shape: shape.causal),
    before=st.integers(0, 20),
    media=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 30)), min_size=1, max_size=2),
    whole=st.booleans(),
    rest=st.integers(0, 9),
    dtype=st.sampled_from([torch.float32, torch.float16]),
)
@settings(max_examples=20, deadline=None)
def test_tokens_of_a_medium_see_each_other(
    *, shape: Shape, before: int, media: list[tuple[int, int]], whole: bool, rest: int, dtype: torch.dtype
) -> None:
    """A row with media at some distances, or which is all one, after some tokens, beside a single token and one without."""
    length = before + sum(map(sum, media)) + rest
    runs = torch.stack((torch.arange(length), 1 + torch.arange(length)), 1)
    end = before
    for distance, size in media:
        runs[end + distance : end + distance + size] = torch.tensor([end + distance, end + distance + size])
        end += distance + size
    if whole:
        runs[:] = torch.tensor([0, length])
    lengths, starts = (length, 9, 21), (min(before, length - 1), 8, 0)
    own = [torch.stack((torch.arange(number), 1 + torch.arange(number)), 1) for number in lengths[1:]]
    sees = torch.cat([part[start:] for part, start in zip([runs, *own], starts, strict=True)])
    sequences = [shape.draw(number, dtype) for number in lengths]
    found = []
    for backend in (TritonAttention(DEVICE), TorchAttention(DEVICE)):
        torch.manual_seed(length)
        paged = Paged(backend, shape, sequences)
        paged.step({row: (0, start) for row, start in enumerate(starts) if start})
        ranges = {row: (start, number) for row, (start, number) in enumerate(zip(starts, lengths, strict=True))}
        found.append(torch.cat(list(paged.step(ranges, sees).values())))
    tolerance = 2e-5 if dtype == torch.float32 else 4e-3
    torch.testing.assert_close(*found, rtol=tolerance, atol=tolerance)
