"""A batch that failed hands over its failure, and nothing that keeps it alive."""

from __future__ import annotations

import gc
import weakref

import pytest

from vllm.engine.executor import Failed


def test_a_failed_batch_raises_what_went_wrong_and_keeps_nothing_alive() -> None:
    class Failure(Exception):
        pass

    error = Failure("no")
    gone = weakref.ref(error)
    pending = Failed(error)
    gc.disable()
    try:
        with pytest.raises(Failure, match="no"):
            pending.result()
        del pending, error
        assert gone() is None
    finally:
        gc.enable()
