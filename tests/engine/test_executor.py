"""A batch that was computed in place hands over its result, or its failure and nothing that keeps it alive."""

from __future__ import annotations

import gc
import weakref

import pytest

from vllm.engine.executor import Computed
from vllm.messages import StepOutput


def test_a_computed_batch_gives_its_output() -> None:
    output = StepOutput(3, [])
    assert Computed(output).result() is output


def test_a_failed_batch_raises_what_went_wrong_and_keeps_nothing_alive() -> None:
    class Failure(Exception):
        pass

    error = Failure("no")
    gone = weakref.ref(error)
    pending = Computed(error)
    gc.disable()
    try:
        with pytest.raises(Failure, match="no"):
            pending.result()
        del pending, error
        assert gone() is None
    finally:
        gc.enable()
