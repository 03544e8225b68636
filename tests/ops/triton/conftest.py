"""For the tests of kernels, where they run on a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.ops.triton import DEVICE


@pytest.fixture(scope="module")
def all_there() -> Iterator[None]:
    """Make tensors where the kernels are run, unless told otherwise."""
    with DEVICE:
        yield
