"""Native attention that sees later tokens too, and biases by distance: against dense attention, and in any company."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.ops.native.test_attention import BOTH, close, quantized
from tests.ops.paged import Paged, Shape, reference
from vllm.ops import native
from vllm.ops.attention import Layout
from vllm.ops.native.attention import NativeAttention
from vllm.ops.native.program import record

SHAPES = [
    Shape(12, 12, 32, causal=False),
    Shape(6, 2, 16, causal=False, window=65, sinks=True, value_dim=20),
    Shape(3, 3, 18, causal=False, alibi=True),
    Shape(14, 2, 8, causal=False, reach=40, softcap=3.0, block_size=48),
    Shape(4, 4, 32, causal=False, window=1, reach=0),
    Shape(5, 1, 10, causal=False, window=150, alibi=True, reach=300),
    Shape(5, 1, 10, window=150, reach=9),
]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_shape_agrees_with_dense_attention(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    head_dim = data.draw(st.integers(1, 70)) if dtype == torch.float32 else 2 * data.draw(st.integers(1, 35))
    kv_heads, group = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 17))
    shape = Shape(
        kv_heads * group,
        kv_heads,
        head_dim,
        window=data.draw(st.none() | st.integers(1, 100)),
        softcap=data.draw(st.sampled_from([0.0, 2.0])),
        block_size=16 * data.draw(st.integers(1, 4)),
        sinks=data.draw(st.booleans()),
        alibi=data.draw(st.booleans()),
        value_dim=data.draw(st.none() | st.integers(1, 70)),
        causal=data.draw(st.booleans()),
        reach=data.draw(st.none() | st.integers(0, 100)),
    )
    small = data.draw(st.booleans())
    lengths = data.draw(st.lists(st.integers(1, 150), min_size=1, max_size=3))
    paged = Paged(NativeAttention(), shape, [shape.draw(length, dtype) for length in lengths], quantized=small)
    for got, sequence in zip(paged.all_whole(), paged.sequences, strict=True):
        assert close(got, reference(shape, *(quantized(sequence) if small else sequence)), sequence[2])


@BOTH
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_of_edge_lengths_agree_with_dense_attention(shape: Shape, dtype: torch.dtype) -> None:
    lengths = [1, 2, 15, 16, 63, 64, 65, 128, 300]
    for small in (False, True):
        paged = Paged(NativeAttention(), shape, [shape.draw(length, dtype) for length in lengths], quantized=small)
        for got, sequence in zip(paged.all_whole(), paged.sequences, strict=True):
            assert close(got, reference(shape, *(quantized(sequence) if small else sequence)), sequence[2])


@BOTH
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_row_gives_the_same_bits_in_any_company_and_with_any_threads(shape: Shape, dtype: torch.dtype) -> None:
    lengths = torch.randint(1, 200, (10,)).tolist()
    paged = Paged(NativeAttention(), shape, [shape.draw(length, dtype) for length in lengths])
    alone = [paged.whole(row, [length]) for row, length in enumerate(lengths)]
    for threads in (1, 2, 3):
        native.set_threads(threads)
        for got, expected in zip(paged.all_whole(), alone, strict=True):
            assert torch.equal(got, expected)
        ends = paged.step({row: (length - 1, length) for row, length in enumerate(lengths)})  # it sees as much alone
        assert all(torch.equal(ends[row], expected[-1:]) for row, expected in enumerate(alone))


@BOTH
@pytest.mark.parametrize("window", [None, 65, 1500])
@pytest.mark.parametrize("length", [1024, 1025, 2600])
def test_threads_that_share_a_long_row_change_no_bit(length: int, window: int | None, dtype: torch.dtype) -> None:
    shape = Shape(2, 1, 16, causal=False, window=window, sinks=True, reach=128)
    paged = Paged(NativeAttention(), shape, [shape.draw(length, dtype), shape.draw(70, dtype)])
    alone = paged.whole(0, [length])
    assert close(alone, reference(shape, *paged.sequences[0]), paged.sequences[0][2])
    for threads in (1, 2, 16):  # 16: so many that they share the items of 1025 tokens
        native.set_threads(threads)
        assert torch.equal(paged.all_whole()[0], alone)
        for count in (1, 3, 70):  # few items: shared by two threads
            assert torch.equal(paged.step({0: (length - count, length)})[0], alone[-count:])


@BOTH
@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
@pytest.mark.parametrize("window", [None, 11])
def test_what_is_not_finite_stays_with_those_that_see_it(dtype: torch.dtype, value: float, window: int | None) -> None:
    shape = Shape(6, 2, 16, causal=False, window=window)
    sequences = [shape.draw(100, dtype) for _ in range(3)]
    expected = [Paged(NativeAttention(), shape, [sequence]).whole(0, [100]) for sequence in sequences]
    q, k, v = (part.clone() for part in sequences[1])
    q[20, 3, 5] = value  # one head of one query
    k[60, 0, 2] = value  # one key, of heads 0 to 2
    v[70, 1, 4] = value  # one element of a value, of heads 3 to 5
    got = Paged(NativeAttention(), shape, [sequences[0], (q, k, v), sequences[2]]).all_whole()
    assert torch.equal(got[0], expected[0]) and torch.equal(got[2], expected[2])
    see_key, see_value = (slice(None), slice(None)) if window is None else (slice(50, 71), slice(60, 81))
    untouched = torch.ones(100, 6, 16, dtype=torch.bool)
    untouched[20, 3], untouched[see_key, :3], untouched[see_value, 3:, 4] = False, False, False
    assert torch.equal(got[1][untouched], expected[1][untouched])
    assert got[1][20, 3].isnan().all()
    assert not got[1][see_value, 3:, 4].isfinite().any()
    if value is torch.nan:
        assert got[1][see_key, :3].isnan().all()


@BOTH
def test_a_biased_prompt_gives_the_same_bits_in_any_chunks(dtype: torch.dtype) -> None:
    shape = Shape(4, 2, 16, window=90, reach=30)
    paged = Paged(NativeAttention(), shape, [shape.draw(150, dtype)])
    alone = paged.whole(0, [150])
    for size in (1, 7, 64):
        assert torch.equal(paged.whole(0, [size]), alone), f"chunks of {size}"


@BOTH
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_recorded_program_sees_what_a_call_sees(shape: Shape, dtype: torch.dtype) -> None:
    backend, options, most = NativeAttention(), shape.options, 120
    paged = Paged(backend, shape, [shape.draw(length, dtype) for length in (100, 1, 17)])
    q, k, v = shape.draw(most, dtype)
    program = record(lambda: backend.run(q, k, v, paged.cache, paged.plan, options))

    def run(rows: list[int]) -> list[Tensor]:
        counts = torch.tensor([len(paged.sequences[row][0]) for row in rows])
        for tensor, which in ((q, 0), (k, 1), (v, 2)):
            tensor[: counts.sum()] = torch.cat([paged.sequences[row][which] for row in rows])
        first = counts.cumsum(0) - counts
        paged.plan.place(Layout(first, torch.zeros_like(first), counts, paged.table[rows], shape.block_size))
        return list(program.run(int(counts.sum())).split(counts.tolist()))

    expected = paged.all_whole()
    for rows in ([0, 1, 2], [2], [1, 2], [0]):
        assert all(torch.equal(got, expected[row]) for got, row in zip(run(rows), rows, strict=True))
