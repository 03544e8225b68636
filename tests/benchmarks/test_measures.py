"""Figures are read off the clock, and ratios say how many times as fast."""

from __future__ import annotations

import pytest

from benchmarks.measures import Readings, measure, ratio

READINGS = Readings(first=[0.5, 1.0], last=[2.5, 4.0], counts=[5, 7], tokens=[3, 1, 4, 1, 5])


def test_the_first_token_is_the_first_requests() -> None:
    assert measure("first_token", READINGS) == 0.5


def test_the_decode_rate_leaves_the_first_token_out() -> None:
    assert measure("decode_rate", READINGS) == 2.0


def test_the_output_rate_is_over_everything() -> None:
    assert measure("output_rate", READINGS) == 3.0
    assert measure("total", READINGS) == 4.0


def test_an_unknown_measure_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'speed' is no measure"):
        measure("speed", READINGS)


def test_above_one_is_faster_for_rates_and_for_seconds() -> None:
    assert ratio("decode_rate", [30.0], [20.0]) == 1.5
    assert ratio("total", [2.0], [3.0]) == 1.5


def test_the_ratio_is_the_median_of_rounds_and_not_of_values() -> None:
    # A machine that is ten times as slow in the last round is so for both.
    ours, theirs = [10.0, 20.0, 2.0], [5.0, 5.0, 1.0]
    assert ratio("output_rate", ours, theirs) == 2.0
