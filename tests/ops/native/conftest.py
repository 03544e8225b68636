"""Each test runs with every kind of kernels that this processor can run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from vllm.ops import native

KERNELS = native.library()


@pytest.fixture(autouse=True, params=KERNELS.variants() if KERNELS else [None])
def _kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    if KERNELS is None:
        pytest.skip("the native kernels are not built")
    KERNELS.choose(request.param)
    native.set_threads(1)
    torch.manual_seed(0)
    with torch.inference_mode():
        yield
    KERNELS.choose(KERNELS.variants()[0])
    native.set_threads(1)
