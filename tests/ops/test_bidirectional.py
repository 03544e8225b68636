"""Attention that sees later tokens too, and biases by distance, in plain torch: against dense attention, and in company."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.ops.paged import Paged, Shape, reference
from vllm.ops.attention_torch import TorchAttention

BACKEND = TorchAttention(torch.device("cpu"))

SHAPES = [
    Shape(1, 1, 8, causal=False),
    Shape(8, 2, 32, causal=False, window=65, sinks=True),
    Shape(6, 3, 16, causal=False, alibi=True, value_dim=24, block_size=5),
    Shape(5, 1, 24, causal=False, reach=20, softcap=3.0, block_size=64),
    Shape(4, 4, 16, causal=False, window=1, reach=0),
    Shape(6, 2, 8, causal=False, window=150, alibi=True, reach=300, block_size=200),
]


@pytest.fixture(autouse=True)
def _a_seed() -> None:
    torch.manual_seed(0)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_shape_agrees_with_dense_attention(data: st.DataObject) -> None:
    kv_heads, group = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 5))
    shape = Shape(
        kv_heads * group,
        kv_heads,
        data.draw(st.integers(1, 40)),
        window=data.draw(st.none() | st.integers(1, 200)),
        softcap=data.draw(st.sampled_from([0.0, 2.0])),
        block_size=data.draw(st.integers(1, 200)),
        sinks=data.draw(st.booleans()),
        alibi=data.draw(st.booleans()),
        value_dim=data.draw(st.none() | st.integers(1, 40)),
        causal=data.draw(st.booleans()),
        reach=data.draw(st.none() | st.integers(0, 150)),
    )
    lengths = data.draw(st.lists(st.integers(1, 270), min_size=1, max_size=4))
    paged = Paged(BACKEND, shape, [shape.draw(length, torch.float32) for length in lengths])
    for got, sequence in zip(paged.all_whole(), paged.sequences, strict=True):
        torch.testing.assert_close(got.double(), reference(shape, *sequence), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_of_edge_lengths_agree_with_dense_attention(shape: Shape) -> None:
    lengths = [1, 2, 63, 64, 65, 128, 129, 256, 500, 1]
    paged = Paged(BACKEND, shape, [shape.draw(length, torch.float32) for length in lengths])
    for got, sequence in zip(paged.all_whole(), paged.sequences, strict=True):
        torch.testing.assert_close(got.double(), reference(shape, *sequence), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_row_gives_the_same_bits_in_any_company(shape: Shape, dtype: torch.dtype) -> None:
    lengths = torch.randint(1, 300, (12,)).tolist()
    paged = Paged(BACKEND, shape, [shape.draw(length, dtype) for length in lengths])
    alone = [paged.whole(row, [length]) for row, length in enumerate(lengths)]
    for got, expected in zip(paged.all_whole(), alone, strict=True):
        assert torch.equal(got, expected)
    ends = paged.step({row: (length - 1, length) for row, length in enumerate(lengths)})  # one sees as much alone
    assert all(torch.equal(ends[row], expected[-1:]) for row, expected in enumerate(alone))


def test_a_biased_prompt_gives_the_same_bits_in_any_chunks() -> None:
    shape = Shape(4, 2, 16, window=90, reach=30)
    paged = Paged(BACKEND, shape, [shape.draw(150, torch.float32)])
    alone = paged.whole(0, [150])
    torch.testing.assert_close(alone.double(), reference(shape, *paged.sequences[0]), rtol=1e-5, atol=1e-5)
    for size in (1, 7, 64):
        assert torch.equal(paged.whole(0, [size]), alone), f"chunks of {size}"


def test_layers_that_see_differently_share_a_plan() -> None:
    shapes = [Shape(2, 1, 8, causal=causal, window=window) for causal in (True, False) for window in (None, 9)]
    paged = Paged(BACKEND, shapes[0], [shapes[0].draw(100, torch.float32)])
    paged.all_whole()
    for shape in shapes:
        got = BACKEND.run(*paged.sequences[0], paged.cache, paged.plan, shape.options)
        torch.testing.assert_close(got.double(), reference(shape, *paged.sequences[0]), rtol=1e-5, atol=1e-5)
