"""What the server's tests share: one `vllm serve` of the model inside the package."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.entrypoints.serve.serving import Serving, serving


@pytest.fixture(scope="session")
def real() -> Iterator[Serving]:
    """A server that tests leave able to serve."""
    with serving() as running:
        yield running
