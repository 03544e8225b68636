"""Paged attention against a dense reference, and its promise: the same bits in any step."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.ops.paged import Paged, Shape, reference
from vllm.kv_cache.spec import Full, Window
from vllm.ops.attention import AttentionOptions, Layout
from vllm.ops.attention_torch import TorchAttention

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _two_threads_and_a_seed() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # with one, lone products would take the same path as batched ones
    torch.manual_seed(0)
    with torch.inference_mode():
        yield
    torch.set_num_threads(threads)


SHAPES = [
    Shape(1, 1, 8),
    Shape(2, 1, 16),
    Shape(3, 3, 18),
    Shape(8, 2, 64),
    Shape(7, 1, 80),
    Shape(6, 2, 40, block_size=5),
    Shape(4, 2, 24, block_size=200),
    Shape(6, 1, 40, value_dim=32, latent=True),
    Shape(4, 4, 32, window=1),
    Shape(8, 4, 16, window=7),
    Shape(5, 1, 48, window=130),
    Shape(4, 2, 8, softcap=3.0),
    Shape(8, 2, 16, window=40, softcap=1.5, block_size=8),
    Shape(6, 3, 16, sinks=True),
    Shape(6, 2, 16, alibi=True, block_size=64),
    Shape(5, 1, 8, window=33, softcap=4.0, sinks=True, alibi=True),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_mixed_steps_over_shuffled_blocks_agree_with_dense_attention(shape: Shape) -> None:
    lengths = [1, 2, 37, 64, 65, 129, 300, 700]
    paged = Paged(TorchAttention(CPU), shape, [shape.draw(length, torch.float32) for length in lengths])
    # first all but a tail of each, then the tails in one step: single tokens beside chunks of a prompt
    tails = [1, 1, 1, 30, 65, 1, 140, 1]
    heads = {
        row: (0, length - tail) for row, (length, tail) in enumerate(zip(lengths, tails, strict=True)) if length > tail
    }
    first = paged.step(heads)
    second = paged.step({row: (length - tails[row], length) for row, length in enumerate(lengths)})
    for row, sequence in enumerate(paged.sequences):
        got = torch.cat([*([first[row]] if row in first else []), second[row]])
        torch.testing.assert_close(got.double(), reference(shape, *sequence), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_loses_only_its_own_rounding(dtype: torch.dtype) -> None:
    shape = Shape(8, 2, 64, window=90)
    paged = Paged(TorchAttention(CPU), shape, [shape.draw(200, dtype)])
    got = paged.whole(0, [200])
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), reference(shape, *paged.sequences[0]), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [SHAPES[i] for i in (0, 2, 3, 4, 8, 9, 11, 14)], ids=str)
def test_a_prompt_gives_the_same_bits_in_any_chunks(shape: Shape, dtype: torch.dtype) -> None:
    paged = Paged(TorchAttention(CPU), shape, [shape.draw(150, dtype)])
    alone = paged.whole(0, [150])
    assert alone.isfinite().all()
    for size in (1, 3, 7, 31, 64, 65):
        assert torch.equal(paged.whole(0, [size]), alone), f"chunks of {size}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [SHAPES[i] for i in (0, 3, 4, 8, 11, 14)], ids=str)
def test_a_row_gives_the_same_bits_in_any_company(shape: Shape, dtype: torch.dtype) -> None:
    lengths = torch.randint(1, 400, (20,)).tolist()
    paged = Paged(TorchAttention(CPU), shape, [shape.draw(length, dtype) for length in lengths])
    alone = [paged.whole(row, [length]) for row, length in enumerate(lengths)]
    together = paged.step({row: (0, length) for row, length in enumerate(lengths)})
    decoded = paged.step({row: (length - 1, length) for row, length in enumerate(lengths)})
    mixed = paged.step({row: (length - 1 - row % 3 * (length // 3), length) for row, length in enumerate(lengths)})
    for row in range(20):
        assert torch.equal(together[row], alone[row])
        assert torch.equal(decoded[row], alone[row][-1:])
        assert torch.equal(mixed[row], alone[row][-len(mixed[row]) :])


def test_blocks_out_of_the_window_may_be_null_and_hold_anything() -> None:
    shape = Shape(4, 2, 16, window=20, block_size=8)
    paged = Paged(TorchAttention(CPU), shape, [shape.draw(150, torch.float32)])
    expected = paged.whole(0, [150])
    stale = (140 - 20 + 1) // 8  # blocks that no token from position 140 on sees
    paged.spoil(paged.table[0, :stale])
    paged.table[0, :stale] = 0
    assert torch.equal(paged.step({0: (140, 150)})[0], expected[140:])
    assert torch.equal(paged.step({0: (149, 150)})[0], expected[149:])


def test_a_copied_block_holds_the_same() -> None:
    shape = Shape(2, 1, 8, block_size=4)
    paged = Paged(TorchAttention(CPU), shape, [shape.draw(10, torch.float32), shape.draw(4, torch.float32)])
    expected = paged.whole(0, [10])
    source, target = int(paged.table[0, 1]), int(paged.table[1, 0])
    paged.backend.copy_block(paged.cache, source, target)
    paged.table[0, 1] = target
    assert torch.equal(paged.step({0: (8, 10)})[0], expected[8:])


def test_the_backend_refuses_a_cache_it_cannot_compute_with() -> None:
    backend = TorchAttention(CPU)
    for spec in (Full(2, 8, 8), Window(2, 8, 8, size=4)):
        assert all(backend.refuses(spec, dtype, 16) is None for dtype in (torch.float32, torch.bfloat16, torch.float16))
        assert "float64" in (backend.refuses(spec, torch.float64, 16) or "")
        assert "int8" in (backend.refuses(spec, torch.float32, 16, quantized=True) or "")


def test_a_new_cache_is_finite_and_values_may_have_their_own_width() -> None:
    backend = TorchAttention(CPU)
    cache = backend.allocate(Full(2, 8, 6), 3, 4, torch.float32)
    assert not cache.keys.any() and not cache.values.any()
    layout = Layout(torch.tensor([0]), torch.tensor([0]), torch.tensor([5]), torch.tensor([[2, 1]]).int(), 4)
    q, k, v = torch.randn(5, 4, 8), torch.randn(5, 2, 8), torch.randn(5, 2, 6)
    plan = backend.plan(1, 5, 2)
    plan.place(layout)
    out = backend.run(q, k, v, cache, plan, AttentionOptions(1.0))
    torch.testing.assert_close(out[0], v[0].repeat_interleave(2, 0))
