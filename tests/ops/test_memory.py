"""Zeroed memory is aligned, and taken from the system only as it is written."""

from __future__ import annotations

import gc

import psutil
import pytest
import torch

from vllm.ops.memory import Arena, zeros

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_zeros_are_zeros_of_the_shape_asked_for(dtype: torch.dtype) -> None:
    found = zeros(3, 5, 7, dtype=dtype, device=CPU)
    assert torch.equal(found, torch.zeros(3, 5, 7, dtype=dtype))
    assert found.dtype is dtype and found.is_contiguous() and found.data_ptr() % 64 == 0


def test_what_is_not_written_takes_no_memory() -> None:
    process = psutil.Process()
    before = process.memory_info().rss
    cache = zeros(1 << 28, dtype=torch.bfloat16, device=CPU)
    cache[: 1 << 20] = 1.0
    assert process.memory_info().rss - before < 64 << 20


def test_an_arena_lends_zeros_side_by_side_and_gives_all_back() -> None:
    arena = Arena()
    parts = [arena.zeros(1000, count, dtype=torch.uint8) for count in (7, 64, 4096, 60_000)]
    big = arena.zeros(80 << 20, dtype=torch.uint8)
    for number, part in enumerate([*parts, big]):
        assert not part.any() and part.data_ptr() % 64 == 0
        part.fill_(number + 1)
    assert all(bool((part == number + 1).all()) for number, part in enumerate([*parts, big]))
    assert parts[1].data_ptr() - parts[0].data_ptr() == 7040
    process = psutil.Process()
    del part, big  # what is large by itself was the allocator's, which may keep it
    before = process.memory_info().vms
    del parts
    gc.collect()
    assert before - process.memory_info().vms >= 64 << 20
