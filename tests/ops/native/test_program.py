"""Computations that are recorded once: they give what the same calls give, for any number of rows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.ops.conftest import matrix_of
from vllm import ops
from vllm.ops import memory, native
from vllm.ops.matrix import Matrix
from vllm.ops.native.program import NotRecordable, Program, record

MOST = 40
FORMATS = [None, "int8", "int4"]


class Blocks:
    """A few layers of a model without attention."""

    def __init__(self, width: int = 48, layers: int = 3, format: str | None = None) -> None:
        def matrix(rows: int, columns: int, gated: bool = False) -> Matrix:
            return matrix_of(torch.randn(rows, columns) / columns**0.5, torch.randn(rows), gated=gated, format=format)

        self.norms = [torch.rand(width) + 0.5 for _ in range(layers)]
        self.ups = [matrix(2 * width, width, gated=True) for _ in range(layers)]
        self.downs = [matrix(width, width) for _ in range(layers)]

    def __call__(self, x: Tensor) -> Tensor:
        for norm, up, down in zip(self.norms, self.ups, self.downs, strict=True):
            hidden = up.multiply(ops.rms_norm(x, norm, 1e-6), activation="silu")
            x = down.multiply(hidden, residual=x)
        return x


@pytest.mark.parametrize("format", FORMATS)
def test_a_program_gives_what_the_calls_give_for_any_number_of_rows(format: str | None) -> None:
    blocks, x = Blocks(format=format), torch.zeros(MOST, 48)
    program = record(lambda: blocks(x))
    for rows in (1, 40, 2, 17, 3, 16, 39, 1):
        x.normal_()
        assert torch.equal(program.run(rows), blocks(x[:rows]))


def test_nothing_is_computed_while_a_program_is_recorded() -> None:
    x = torch.ones(4, 8)
    program = record(lambda: ops.softcap(x, 0.5))
    assert torch.equal(x, torch.ones(4, 8))
    program.run(2)
    assert (x[:2] < 0.5).all() and (x[2:] == 1).all()


def test_views_are_recorded_and_heads_are_views() -> None:
    x, table, positions = torch.randn(6, 3 * 16), torch.randn(10, 16), torch.arange(6)
    expected = x.clone()
    ops.rotary(*(part.unflatten(1, (-1, 16)) for part in expected.split((32, 16), dim=1)), table, positions)

    def turn() -> Tensor:
        q, k = (part.unflatten(1, (-1, 16)) for part in x.split((32, 16), dim=1))
        ops.rotary(q, k, table, positions)
        return x

    assert torch.equal(record(turn).run(4)[:4], expected[:4])


def test_memory_of_results_that_are_done_with_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    zeros = memory.raw_zeros
    monkeypatch.setattr(memory, "raw_zeros", lambda size: taken.append(size) or zeros(size))
    blocks, x = Blocks(layers=12), torch.randn(MOST, 48)
    program = record(lambda: blocks(x))
    assert len(taken) <= 4  # of 36 results: input and output of a product, its residual, and what is being replaced
    assert torch.equal(program.run(MOST), blocks(x))


def test_two_programs_keep_out_of_each_others_memory() -> None:
    blocks, x, y = Blocks(), torch.randn(MOST, 48), torch.randn(MOST, 48)
    first, second = record(lambda: blocks(x)), record(lambda: blocks(y))
    got, other = first.run(MOST), second.run(MOST)
    assert torch.equal(got, blocks(x)) and torch.equal(other, blocks(y))


def test_a_program_reads_what_another_one_wrote() -> None:
    blocks, x, chosen = Blocks(), torch.randn(MOST, 48), torch.zeros(8, dtype=torch.int64)
    hidden = record(lambda: blocks(x))
    some = record(lambda: ops.gather(hidden.output, chosen))
    chosen[:3] = torch.tensor([7, 0, 20])
    hidden.run(21)
    assert torch.equal(some.run(3), blocks(x)[chosen[:3]])


def test_a_program_outlives_what_recorded_it() -> None:
    x = torch.randn(MOST, 48)

    def make() -> tuple[Program, Blocks]:
        blocks = Blocks()
        return record(lambda: blocks(x)), blocks

    (program, blocks), _ = make(), [torch.full((MOST, 48), torch.nan) for _ in range(50)]
    assert torch.equal(program.run(9), blocks(x[:9]))


@pytest.mark.parametrize("recorded, later", [(3, 1), (3, 2), (1, 3), (2, 4)])
def test_a_program_runs_with_other_numbers_of_threads_than_it_was_recorded_with(recorded: int, later: int) -> None:
    blocks, x = Blocks(), torch.randn(MOST, 48)
    expected = blocks(x)
    native.set_threads(recorded)
    program = record(lambda: blocks(x))
    native.set_threads(later)
    for rows in (1, 5, 40):
        assert torch.equal(program.run(rows), expected[:rows])


@pytest.mark.parametrize(
    "foreign",
    [
        lambda x: x + 1,
        lambda x: x.mul_(2),
        lambda x: x[:, ::2].contiguous(),
        lambda x: x.double(),
        lambda x: x * float(x.sum()),
        lambda x: torch.cat((x, x)),
        lambda x: ops.add(x, torch.ones(4, 8)),
    ],
    ids=["sum", "in place", "copy", "dtype", "value", "join", "new tensor"],
)
def test_what_is_no_kernel_is_refused(foreign: Callable[[Tensor], Tensor]) -> None:
    x = torch.ones(4, 8)
    with pytest.raises(NotRecordable, match="aten"):
        record(lambda: foreign(ops.add(x, x)))
    assert torch.equal(x, torch.ones(4, 8))
    assert ops.record(lambda rows: foreign(ops.add(x[:rows], x[:rows])), 4) is None


@pytest.mark.parametrize("error", [NotRecordable, ValueError, KeyboardInterrupt])
def test_a_recording_that_fails_leaves_nothing_behind(error: type[BaseException]) -> None:
    x = torch.ones(4, 8)

    def fail() -> Tensor:
        ops.softcap(x, 0.5)
        raise error

    with pytest.raises(error):
        record(fail)
    assert torch.equal(ops.add(x, x), torch.full((4, 8), 2.0))  # computed at once, and x is as it was
    assert torch.equal(record(lambda: ops.add(x, x)).run(4), torch.full((4, 8), 2.0))


def test_a_recording_inside_a_recording_is_refused() -> None:
    x = torch.ones(4, 8)
    with pytest.raises(RuntimeError, match="already"):
        record(lambda: record(lambda: ops.add(x, x)).output)
    assert torch.equal(record(lambda: ops.add(x, x)).run(4), torch.full((4, 8), 2.0))


def test_kernels_say_when_they_get_too_few_or_too_many_arguments() -> None:
    kernels = native.library()
    for values in ((), (1, 2), range(30)):
        with pytest.raises(TypeError):
            kernels.add(*values)
    with pytest.raises(TypeError):
        kernels.run(1)
    with pytest.raises(ValueError):
        kernels.run("no program", 1)
    with pytest.raises(RuntimeError, match="no program"):
        kernels.stop_recording()
