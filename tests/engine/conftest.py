"""Engines over tiny models, loaded once per module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vllm import LLM

Load = Callable[..., LLM]


@pytest.fixture(scope="module")
def load(checkpoint: Callable[..., Path]) -> Iterator[Load]:
    """`load("llama", max_num_seqs=2)` → an LLM over a tiny checkpoint, closed with the module."""
    made: dict[str, LLM] = {}

    def make(model_type: str = "llama", **options: Any) -> LLM:
        key = repr((model_type, sorted(options.items())))
        if key not in made:
            made[key] = LLM(checkpoint(model_type), **{"dtype": "float32", **options})
        return made[key]

    yield make
    for llm in made.values():
        llm.close()
