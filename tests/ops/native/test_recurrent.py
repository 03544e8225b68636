"""Recurrences with the kernels give what plain torch gives, and leave the same states, whatever the shapes."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vllm.ops import recurrent
from vllm.ops.attention import Layout
from vllm.ops.native import recurrent as kernels
from vllm.ops.recurrent import Fading
from vllm.ops.states import StatePlan

SIZE = 8
DTYPES = st.sampled_from([torch.float32, torch.bfloat16])
WIDTHS = st.integers(1, 70) | st.sampled_from([64, 128, 144])


@st.composite
def steps(draw: Any) -> tuple[StatePlan, int, int]:
    """Return the plan of a step, and how many tokens and blocks there are."""
    counts = draw(st.lists(st.integers(1, 21), min_size=1, max_size=3))
    starts = [draw(st.integers(0, 20)) for _ in counts]
    count, start = torch.tensor(counts), torch.tensor(starts)
    width = (20 + 21) // SIZE + 1
    table = 1 + torch.randperm(len(counts) * width).int().view(len(counts), width)
    for row, (first, number) in enumerate(zip(starts, counts, strict=True)):
        for block in range(first // SIZE + (first % SIZE > 0), (first + number - 1) // SIZE):
            if draw(st.booleans()):
                table[row, block] = 0  # nobody wants the state at this border
    plan = StatePlan(torch.device("cpu"))
    plan.place(Layout(count.cumsum(0) - count, start, count, table, SIZE))
    return plan, sum(counts), 1 + table.numel()


def agree(name: str, memory: Tensor, plan: StatePlan, inputs: tuple[Any, ...]) -> None:
    memories = memory.clone(), memory.clone()
    places = [{"memory": one, "plan": plan} for one in memories]
    dtype = inputs[0].dtype
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    ours, theirs = (
        getattr(module, name)(*inputs, **place) for module, place in zip((kernels, recurrent), places, strict=True)
    )
    assert ours.dtype == theirs.dtype
    torch.testing.assert_close(ours, theirs, **tolerance)
    torch.testing.assert_close(memories[0][1:], memories[1][1:], rtol=1e-4, atol=1e-4)


@given(steps(), WIDTHS, st.integers(2, 6), st.booleans(), st.sampled_from([None, "silu", "gelu"]), DTYPES)
@settings(max_examples=25, deadline=None)
def test_causal_conv(
    step: tuple[StatePlan, int, int], channels: int, kernel: int, bias: bool, activation: str | None, dtype: torch.dtype
) -> None:
    plan, tokens, blocks = step
    x = torch.randn(tokens, 2 * channels).to(dtype)[:, :channels]
    weight, offset = torch.randn(kernel, channels).to(dtype), torch.randn(channels).to(dtype) if bias else None
    memory = torch.randn(blocks, kernel - 1, channels).to(dtype)
    memories = memory.clone(), memory.clone()
    for wanted in (torch.float32, dtype):
        ours, theirs = (
            module.causal_conv(x, weight, offset, one, plan, activation, wanted)
            for module, one in zip((kernels, recurrent), memories, strict=True)
        )
        tolerance = {"rtol": 1e-4, "atol": 1e-4} if wanted == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
        torch.testing.assert_close(ours, theirs, **tolerance)
        assert torch.equal(memories[0][1:], memories[1][1:])
        memories = memory.clone(), memory.clone()


@given(steps(), st.tuples(st.integers(1, 3), st.integers(1, 3)), WIDTHS, st.integers(1, 20), st.booleans(), DTYPES)
@settings(max_examples=25, deadline=None)
def test_selective_scan(
    step: tuple[StatePlan, int, int], heads: tuple[int, int], width: int, states: int, alone: bool, dtype: torch.dtype
) -> None:
    plan, tokens, blocks = step
    groups, count = heads[0], heads[0] * heads[1]
    each = (count, width) if alone else (count,)
    x, dt = torch.randn(tokens, count, width).to(dtype), torch.randn(tokens, *each).to(dtype)
    b, c = torch.randn(2, tokens, groups, states).to(dtype)
    fading = Fading(-torch.rand((count, states, width) if alone else count), torch.randn(each), (0.1, 3.0))
    agree("selective_scan", torch.randn(blocks, count, states, width), plan, (x, dt, b, c, fading, torch.randn(each)))


@given(steps(), WIDTHS, DTYPES)
@settings(max_examples=25, deadline=None)
def test_rg_lru(step: tuple[StatePlan, int, int], width: int, dtype: torch.dtype) -> None:
    plan, tokens, blocks = step
    x, opening, keeping = torch.randn(3, tokens, width).to(dtype)
    agree("rg_lru", torch.randn(blocks, width), plan, (x, opening, keeping, -torch.rand(width)))


@given(steps(), st.tuples(st.integers(1, 3), st.integers(1, 2)), WIDTHS, st.integers(1, 40), st.booleans())
@settings(max_examples=25, deadline=None)
def test_gated_delta(
    step: tuple[StatePlan, int, int], heads: tuple[int, int], width: int, key_width: int, alone: bool
) -> None:
    plan, tokens, blocks = step
    key_heads, count = heads[0], heads[0] * heads[1]
    q, k = torch.randn(2, tokens, key_heads, key_width)
    each = (count, key_width) if alone else (count,)
    v, dt, beta = torch.randn(tokens, count, width), torch.randn(tokens, *each), torch.randn(tokens, count)
    fading = Fading(-torch.rand(count), torch.randn(each))
    agree("gated_delta", torch.randn(blocks, count, key_width, width), plan, (q, k, v, dt, beta, fading, 1.5))
