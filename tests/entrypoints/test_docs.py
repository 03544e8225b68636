"""Examples in docstrings run."""

from __future__ import annotations

import doctest

import pytest

import vllm.entrypoints.llm


@pytest.mark.parametrize("module", [vllm.entrypoints.llm])
def test_the_examples_of(module: object) -> None:
    failed, attempted = doctest.testmod(module)  # type: ignore[arg-type]
    assert attempted and not failed
