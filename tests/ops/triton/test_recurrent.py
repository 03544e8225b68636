"""Recurrences for GPUs give what plain torch gives, and leave the same states.

On a GPU itself: TRITON_INTERPRET=0 pytest tests/ops/triton/test_recurrent.py
"""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.ops.triton import DEVICE
from vllm.ops import recurrent
from vllm.ops.attention import Form, Layout
from vllm.ops.recurrent import Fading
from vllm.ops.states import StatePlan
from vllm.ops.triton import delta
from vllm.ops.triton import recurrent as kernels
from vllm.ops.triton.states import TritonStatePlan

SIZE = 8
WIDTH = (20 + 21) // SIZE + 1
DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])
WIDTHS = st.integers(1, 70) | st.sampled_from([64, 128])
FEW = settings(max_examples=25, deadline=None)


Step = tuple[Layout, int, int]
"""Where the tokens of a step are, and how many tokens and blocks there are"""


@st.composite
def steps(draw: Any) -> Step:
    counts = draw(st.lists(st.integers(1, 21), min_size=1, max_size=3) | st.lists(st.just(1), min_size=1, max_size=4))
    starts = [draw(st.integers(0, 20)) for _ in counts]
    count, start = torch.tensor(counts), torch.tensor(starts)
    table = 1 + torch.randperm(len(counts) * WIDTH).int().view(len(counts), WIDTH)
    for row, (first, number) in enumerate(zip(starts, counts, strict=True)):
        for block in range(first // SIZE + (first % SIZE > 0), (first + number - 1) // SIZE):
            if draw(st.booleans()):
                table[row, block] = 0  # nobody wants the state at this border
    return Layout(count.cumsum(0) - count, start, count, table, SIZE), sum(counts), 1 + table.numel()


def agree(name: str, memory: Tensor, layout: Layout, *inputs: Any, beside: int = 0, **options: Any) -> None:
    """Compare results and the states that are left; of inputs, the first `beside` have something between their tokens."""
    inputs = (*(_apart(part) for part in inputs[:beside]), *inputs[beside:])
    here = memory.clone()
    reference = StatePlan(torch.device("cpu"))
    reference.place(layout)
    theirs = getattr(recurrent, name)(*inputs, memory=here, plan=reference, **options)
    there = memory.to(DEVICE)
    kernel = getattr(delta if name == "gated_delta" else kernels, name)
    ours = kernel(*map(_sent, inputs), memory=there, plan=placed(layout), **options).cpu()
    assert ours.dtype == theirs.dtype
    tolerance = 1e-4 if ours.dtype == torch.float32 else 2e-2
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(there.cpu()[1:], here[1:], rtol=1e-4, atol=1e-4)


def placed(layout: Layout) -> TritonStatePlan:
    """Return a plan that was placed for another step before."""
    plan = TritonStatePlan(DEVICE, 6, WIDTH + 3)
    first, start, count = (torch.full((6,), number) for number in (4, 3, 9))
    plan.place(Layout(first, start, count, layout.block_table[:1].repeat(6, 1), SIZE))
    plan.place(layout)
    assert (plan.form is Form.SINGLES) == bool((layout.count == 1).all())
    return plan


def _sent(part: Any) -> Any:
    if isinstance(part, Fading):
        return Fading(_sent(part.a), _sent(part.bias), part.limits)
    return part.to(DEVICE) if isinstance(part, Tensor) else part


def _apart(x: Tensor) -> Tensor:
    return torch.cat((x, torch.full_like(x, torch.nan)), dim=1)[:, : x.shape[1]]


@given(
    steps(), WIDTHS, st.integers(2, 12), st.booleans(), st.sampled_from([None, "silu", "gelu"]), DTYPES, st.booleans()
)
@FEW
def test_causal_conv(
    step: Step, channels: int, kernel: int, bias: bool, activation: str | None,
    dtype: torch.dtype, wide: bool,
) -> None:  # fmt: skip
    layout, tokens, blocks = step
    x, weight = torch.randn(tokens, channels).to(dtype), torch.randn(kernel, channels).to(dtype)
    offset, memory = torch.randn(channels).to(dtype) if bias else None, torch.randn(blocks, kernel - 1, channels)
    around = {"activation": activation, "dtype": torch.float32 if wide else None}
    agree("causal_conv", memory.to(dtype), layout, x, weight, offset, beside=1, **around)


@given(steps(), st.tuples(st.integers(1, 3), st.integers(1, 3)), WIDTHS, st.integers(1, 20), st.booleans(), DTYPES)
@FEW
def test_selective_scan(
    step: Step,
    heads: tuple[int, int],
    width: int,
    states: int,
    alone: bool,
    dtype: torch.dtype,
) -> None:
    layout, tokens, blocks = step
    groups, count = heads[0], heads[0] * heads[1]
    each = (count, width) if alone else (count,)
    x, dt = torch.randn(tokens, count, width).to(dtype), (4 * torch.randn(tokens, *each) - 3).to(dtype)
    b, c = torch.randn(2, tokens, groups, states).to(dtype)
    fading = Fading(-torch.rand((count, states, width) if alone else count), torch.randn(each), (0.0, 3.0))
    memory = torch.randn(blocks, count, states, width)
    agree("selective_scan", memory, layout, x, dt, b, c, fading, torch.randn(each), beside=4)


@given(steps(), st.integers(1, 3), WIDTHS, st.integers(1, 20), DTYPES)
@FEW
def test_selective_scan_without_time_steps_or_biases(
    step: Step, heads: int, width: int, states: int, dtype: torch.dtype
) -> None:
    layout, tokens, blocks = step
    x, (b, c) = torch.randn(tokens, heads, width).to(dtype), torch.randn(2, tokens, heads, states).to(dtype)
    memory, fading = torch.randn(blocks, heads, states, width), Fading(-torch.rand(heads))
    for dt in (None, torch.randn(tokens, heads)):
        agree("selective_scan", memory, layout, x, dt, b, c, fading, torch.zeros(heads))


@given(steps(), WIDTHS, DTYPES)
@FEW
def test_rg_lru(step: Step, width: int, dtype: torch.dtype) -> None:
    layout, tokens, blocks = step
    x, opening, keeping = torch.randn(3, tokens, width).to(dtype)
    agree("rg_lru", torch.randn(blocks, width), layout, x, opening, keeping, -torch.rand(width), beside=3)


@given(steps(), st.tuples(st.integers(1, 3), st.integers(1, 2)), WIDTHS, st.integers(1, 40), st.booleans())
@FEW
def test_gated_delta(step: Step, heads: tuple[int, int], width: int, key_width: int, alone: bool) -> None:
    layout, tokens, blocks = step
    key_heads, count = heads[0], heads[0] * heads[1]
    q, k = torch.randn(2, tokens, key_heads, key_width)
    each = (count, key_width) if alone else (count,)
    v, dt, beta = torch.randn(tokens, count, width), torch.randn(tokens, *each), torch.randn(tokens, count)
    fading = Fading(-torch.rand(count), torch.randn(each))
    memory = torch.randn(blocks, count, key_width, width)
    agree("gated_delta", memory, layout, q, k, v, dt, beta, fading, 1.5, beside=5)


@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 150)), flat=st.booleans(),
    weights=st.sampled_from([None, "each", "shared"]), order=st.sampled_from(["gate_first", "norm_first"]),
    activation=st.sampled_from(["silu", "sigmoid", "gelu"]), dtypes=st.tuples(st.booleans(), DTYPES),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_gate(
    shape: tuple[int, int, int],
    flat: bool,
    weights: str | None,
    order: Any,
    activation: str,
    dtypes: tuple[bool, torch.dtype],
) -> None:
    wide, dtype = dtypes
    x, gate = torch.randn(shape).to(torch.float32 if wide else dtype), torch.randn(shape).to(dtype)
    x, gate, weight = _apart(x), _apart(gate), torch.randn(shape[1:]).to(dtype)
    if flat:
        x, gate, weight = x[:, 0], gate[:, 0], weight[0]
    elif weights == "shared":
        weight = weight[0]
    inputs = x, gate, activation, weight if weights else None, 1e-3, order
    ours, theirs = kernels.gate(*map(_sent, inputs)).cpu(), recurrent.gate(*inputs)
    tolerance = 2e-5 if dtype == torch.float32 else 2e-2
    assert ours.dtype == theirs.dtype
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def test_a_state_that_stays_where_it_is_may_be_read_and_left_in_one_block() -> None:
    """Single tokens of a convolution, whose state moves by one place."""
    channels, taps, table = 300, 4, torch.tensor([[1], [2]]).int()
    layout = Layout(torch.arange(2), torch.tensor([3, 5]), torch.ones(2, dtype=torch.int64), table, SIZE)
    x, weight, memory = torch.randn(2, channels), torch.randn(taps, channels), torch.randn(3, taps - 1, channels)
    agree("causal_conv", memory, layout, x, weight, None)
