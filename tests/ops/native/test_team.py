"""The team's own threads, where torch has none to lend: the same bits as one thread gives, run after run."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.ops.conftest import matrix_of
from tests.ops.paged import Paged, Shape
from vllm.ops import native
from vllm.ops.native import program, rows
from vllm.ops.native.attention import NativeAttention


def own_threads(count: int) -> None:
    native.library().set_team(count, 0, 0, 0)


def work() -> list[Tensor]:
    """Operations of one phase and of two, of few items and of many."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(35, 64, generator=generator)
    weight = torch.randn(50, 64, generator=generator)
    matrices = [matrix_of(weight, format=format) for format in (None, "int8", "int4")]
    products = [matrix.multiply(x[:count]) for matrix in matrices for count in (1, 5, 35)]
    return [*products, rows.rms_norm(x, weight[0], 1e-6), rows.softcap(x.clone(), 2.0), rows.gather(x, torch.arange(9))]


def test_any_number_of_own_threads_gives_the_same_bits() -> None:
    expected = work()
    for count in (2, 3, 5, 1, 2, 4) * 3:
        own_threads(count)
        for got, one in zip(work(), expected, strict=True):
            assert torch.equal(got, one)


def test_attention_over_a_long_sequence_is_shared_by_own_threads() -> None:
    shape = Shape(4, 2, 16)
    paged = Paged(NativeAttention(), shape, [shape.draw(length, torch.float32) for length in (1500, 40, 3)])
    whole = {row: (0, len(sequence[0])) for row, sequence in enumerate(paged.sequences)}
    last = {row: (len(sequence[0]) - 1, len(sequence[0])) for row, sequence in enumerate(paged.sequences)}
    expected = [paged.step(whole), paged.step(last)]
    for count in (2, 3, 5):
        own_threads(count)
        for step, outputs in zip((whole, last), expected, strict=True):
            got = paged.step(step)
            assert all(torch.equal(got[row], outputs[row]) for row in got)


@pytest.mark.parametrize("start", [own_threads, native.set_threads], ids=["own", "torch"])
def test_programs_and_single_operations_of_any_number_of_threads_take_turns(start: object) -> None:
    """Helpers that sit out a run wake late; they must neither miss the next one nor take part twice."""
    assert callable(start)
    x, zeros, weight = torch.randn(70, 32), torch.zeros(70, 32), torch.randn(40, 32)
    matrix = matrix_of(weight)
    expected = matrix.multiply(x)
    programs = []
    for count in (1, 2, 4):
        start(count)
        programs.append(program.record(lambda: matrix.multiply(rows.add(x, zeros))))
    for turn in range(300):
        if turn % 50 == 0:
            start(1 + (turn // 50) % 4)
        recorded, size = programs[turn % 3], 1 + turn * 7 % 70
        assert torch.equal(recorded.run(size), expected[:size])
        if turn % 2:
            assert torch.equal(matrix.multiply(x[:size]), expected[:size])
