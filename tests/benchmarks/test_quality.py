"""Measures of quality, on values reckoned by hand."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.quality import compare


def test_an_error_is_relative_to_all_logits_and_the_most_likely_tokens_are_compared() -> None:
    exact = np.array([[3.0, 0.0, 4.0], [0.0, 12.0, 0.0]], dtype=np.float32)
    found = compare(exact + np.array([[0.0, 0.0, -1.3], [0.0, 0.0, 0.0]], dtype=np.float32), exact)
    assert found["error"] == pytest.approx(0.1)
    assert found["same"] == 0.5
    assert compare(exact, exact) == {"error": 0.0, "same": 1.0}
