"""Native attention against a dense reference, and its promise: the same bits in any step, with any number of threads."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.ops.paged import Paged, Sequence, Shape, reference
from vllm.kv_cache.spec import Full, Window
from vllm.ops import native
from vllm.ops.native.attention import NativeAttention

BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)

SHAPES = [
    Shape(1, 1, 2),
    Shape(3, 3, 18),
    Shape(14, 2, 64),
    Shape(13, 1, 80, value_dim=33),  # more heads than a tile has rows
    Shape(6, 2, 40, block_size=48),
    Shape(4, 4, 32, window=1),
    Shape(5, 1, 48, window=130, value_dim=20),
    Shape(8, 2, 16, window=40, softcap=1.5, block_size=32),
    Shape(16, 1, 576, value_dim=512),  # latent attention
    Shape(5, 1, 8, window=33, softcap=4.0, sinks=True, alibi=True),
]


def close(got: Tensor, expected: Tensor, values: Tensor) -> bool:
    """Whether a result is as near as its dtype allows.  [L, H, Ev], [L, H, Ev], [L, G, Ev]

    float32: 2⁻¹⁶ of the greatest value, many times its rounding.  bfloat16: each weight, the sum of weights and the
    result are rounded by at most 2⁻⁹ of theirs, and weights sum to 1: at most 3 · 2⁻⁹ of the greatest value.
    """
    error = (got.double() - expected).abs().max()
    return bool(error <= values.abs().max() * (2**-16 if got.dtype == torch.float32 else 3 * 2**-9))


def quantized(sequence: Sequence) -> Sequence:
    """What an 8-bit cache keeps of keys and values."""

    def keep(x: Tensor) -> Tensor:
        scale = x.float().abs().amax(-1, keepdim=True) / 127
        return (x.float() / scale).round() * scale

    q, k, v = sequence
    return q, keep(k), keep(v)


def in_two_steps(paged: Paged, tails: list[int]) -> list[Tensor]:
    """All but a tail of each sequence in one step, then the tails: single tokens beside chunks of a prompt."""
    cuts = [max(0, len(q) - tail) for (q, _, _), tail in zip(paged.sequences, tails, strict=True)]
    beginnings = {row: (0, cut) for row, cut in enumerate(cuts) if cut}
    first = paged.step(beginnings) if beginnings else {}
    second = paged.step({row: (cut, len(paged.sequences[row][0])) for row, cut in enumerate(cuts)})
    return [torch.cat([*([first[row]] if row in first else []), second[row]]) for row in second]


@BOTH
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_mixed_steps_over_shuffled_blocks_agree_with_dense_attention(shape: Shape, dtype: torch.dtype) -> None:
    lengths = [1, 2, 37, 64, 65, 129, 300]
    for small in (False, True):
        paged = Paged(NativeAttention(), shape, [shape.draw(length, dtype) for length in lengths], quantized=small)
        for got, sequence in zip(in_two_steps(paged, [1, 1, 1, 30, 65, 1, 140]), paged.sequences, strict=True):
            expected = reference(shape, *(quantized(sequence) if small else sequence))
            assert close(got, expected, sequence[2])


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
    )
    lengths = data.draw(st.lists(st.integers(1, 90), min_size=1, max_size=3))
    paged = Paged(NativeAttention(), shape, [shape.draw(length, dtype) for length in lengths])
    for got, sequence in zip(
        in_two_steps(paged, [data.draw(st.integers(1, 40)) for _ in lengths]), paged.sequences, strict=True
    ):
        assert close(got, reference(shape, *sequence), sequence[2])


@BOTH
@pytest.mark.parametrize("small", [False, True], ids=["own dtype", "int8"])
@pytest.mark.parametrize("shape", [SHAPES[i] for i in (1, 3, 4, 6, 8)], ids=str)
def test_a_prompt_gives_the_same_bits_in_any_chunks(shape: Shape, dtype: torch.dtype, small: bool) -> None:
    paged = Paged(NativeAttention(), shape, [shape.draw(150, dtype)], quantized=small)
    alone = paged.whole(0, [150])
    assert alone.isfinite().all()
    for size in (1, 3, 16, 31, 65):
        assert torch.equal(paged.whole(0, [size]), alone), f"chunks of {size}"


@BOTH
@pytest.mark.parametrize("shape", [SHAPES[i] for i in (0, 2, 5, 7)], ids=str)
def test_a_row_gives_the_same_bits_in_any_company_and_with_any_threads(shape: Shape, dtype: torch.dtype) -> None:
    lengths = torch.randint(1, 300, (12,)).tolist()
    paged = Paged(NativeAttention(), shape, [shape.draw(length, dtype) for length in lengths])
    alone = [paged.whole(row, [length]) for row, length in enumerate(lengths)]
    for threads in (1, 2, 3):
        native.set_threads(threads)
        together = paged.step({row: (0, length) for row, length in enumerate(lengths)})
        decoded = paged.step({row: (length - 1, length) for row, length in enumerate(lengths)})
        mixed = paged.step({row: (length - 1 - row % 3 * (length // 3), length) for row, length in enumerate(lengths)})
        for row, expected in enumerate(alone):
            assert torch.equal(together[row], expected)
            assert torch.equal(decoded[row], expected[-1:])
            assert torch.equal(mixed[row], expected[-len(mixed[row]) :])


@BOTH
@pytest.mark.parametrize("window", [None, 1500])
def test_threads_that_share_a_long_sequence_change_no_bit(dtype: torch.dtype, window: int | None) -> None:
    shape = Shape(4, 2, 16, window=window, sinks=True)
    paged = Paged(NativeAttention(), shape, [shape.draw(2600, dtype)])
    alone = paged.whole(0, [2600])
    assert close(alone, reference(shape, *paged.sequences[0]), paged.sequences[0][2])
    for threads in (1, 2, 3):
        native.set_threads(threads)
        for start, end in ((2599, 2600), (2500, 2503), (1020, 1030), (2040, 2060)):
            assert torch.equal(paged.step({0: (start, end)})[0], alone[start:end])


@BOTH
@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
def test_what_is_not_finite_stays_with_those_that_see_it(dtype: torch.dtype, value: float) -> None:
    shape = Shape(6, 2, 16)
    sequences = [shape.draw(100, dtype) for _ in range(3)]
    expected = [Paged(NativeAttention(), shape, [sequence]).whole(0, [100]) for sequence in sequences]
    q, k, v = (part.clone() for part in sequences[1])
    q[20, 3, 5] = value  # one head of one query
    k[60, 0, 2] = value  # one key, of heads 0 to 2
    v[70, 1, 4] = value  # one element of a value, of heads 3 to 5
    paged = Paged(NativeAttention(), shape, [sequences[0], (q, k, v), sequences[2]])
    got = paged.step(dict.fromkeys(range(3), (0, 100)))
    assert torch.equal(got[0], expected[0]) and torch.equal(got[2], expected[2])
    untouched = torch.ones(100, 6, 16, dtype=torch.bool)
    untouched[20, 3], untouched[60:, :3], untouched[70:, 3:, 4] = False, False, False
    assert torch.equal(got[1][untouched], expected[1][untouched])
    assert got[1][20, 3].isnan().all()
    assert not got[1][70:, 3:, 4].isfinite().any()
    if value is torch.nan:
        assert got[1][60:, :3].isnan().all()
    assert torch.equal(paged.whole(1, [7]).nan_to_num(), got[1].nan_to_num())


def test_blocks_out_of_the_window_may_be_null_and_hold_anything() -> None:
    shape = Shape(4, 2, 16, window=20)
    paged = Paged(NativeAttention(), shape, [shape.draw(150, torch.float32)])
    expected = paged.whole(0, [150])
    stale = (140 - 20 + 1) // 16  # blocks that no token from position 140 on sees
    paged.spoil(paged.table[0, :stale])
    paged.table[0, :stale] = 0
    assert torch.equal(paged.step({0: (140, 150)})[0], expected[140:])
    assert torch.equal(paged.step({0: (149, 150)})[0], expected[149:])


@pytest.mark.parametrize("small", [False, True], ids=["own dtype", "int8"])
def test_a_copied_block_holds_the_same(small: bool) -> None:
    shape = Shape(2, 1, 8)
    paged = Paged(NativeAttention(), shape, [shape.draw(40, torch.float32) for _ in range(2)], quantized=small)
    expected = paged.whole(0, [40])
    source, target = int(paged.table[0, 1]), int(paged.table[1, 0])
    paged.backend.copy_block(paged.cache, source, target)
    paged.table[0, 1] = target
    assert torch.equal(paged.step({0: (32, 40)})[0], expected[32:])


def test_a_new_cache_is_finite_and_begins_at_a_page_of_memory() -> None:
    cache = NativeAttention().allocate(Full(2, 8, 6), 3, 32, torch.float32)
    assert not cache.pages.any() and cache.pages.data_ptr() % 4096 == 0
    assert cache.pages.shape == (3, 2 * 2 * 16 * (8 + 16) * 4)


def test_the_backend_refuses_what_the_kernels_have_not() -> None:
    backend = NativeAttention()
    for spec in (Full(2, 8, 8), Window(2, 8, 8, size=4)):
        assert backend.refuses(spec, torch.float32, 16) is None
        assert backend.refuses(spec, torch.bfloat16, 48, quantized=True) is None
        assert "float16" in (backend.refuses(spec, torch.float16, 16) or "")
        assert "not of 24" in (backend.refuses(spec, torch.float32, 24) or "")
    assert "at most 1024" in (backend.refuses(Full(1, 1040, 512), torch.float32, 16) or "")
    assert "even" in (backend.refuses(Full(1, 9, 9), torch.bfloat16, 16) or "")
    assert backend.refuses(Full(1, 9, 9), torch.float32, 16) is None
