"""Zeroed memory is aligned, and taken from the system only as it is written."""

from __future__ import annotations

import psutil
import pytest
import torch

from vllm.ops.memory import zeros

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
