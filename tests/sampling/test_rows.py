"""One pass over the vocabulary finds a row's greatest logit, and a partition its most likely tokens, in a fixed order."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm.sampling.mass import Mass
from vllm.sampling.rows import greatest, select, top

logits = st.floats(width=32, allow_nan=False) | st.sampled_from([0.0, -0.0, 1.0, -1.0, -math.inf, math.inf])


@settings(max_examples=200)
@given(
    rows=st.integers(1, 70).flatmap(
        lambda n: st.lists(st.lists(logits, min_size=n, max_size=n), min_size=1, max_size=4)
    )
)
def test_the_greatest_is_the_first_of_a_stable_sort(rows: list[list[float]]) -> None:
    tokens, peaks = greatest(torch.tensor(rows))
    assert tokens == [max(range(len(row)), key=lambda token: (row[token], -token)) for row in rows]
    assert peaks == [row[token] for row, token in zip(rows, tokens, strict=True)]


@pytest.mark.parametrize("vocab_size", [1, 7, 64, 1000, 40_001])
def test_one_nan_anywhere_is_the_greatest(vocab_size: int) -> None:
    for place in {0, vocab_size // 2, vocab_size - 1}:
        rows = torch.full((2, vocab_size), math.inf)
        rows[1, place] = math.nan
        _, peaks = greatest(rows)
        assert peaks[0] == math.inf and math.isnan(peaks[1])


@settings(max_examples=200)
@given(row=st.lists(logits, min_size=1, max_size=300), count=st.integers(1, 310))
def test_the_most_likely_tokens_are_the_beginning_of_a_stable_sort(row: list[float], count: int) -> None:
    values, ids = top(torch.tensor([row]), count)
    ranked = sorted(range(len(row)), key=lambda token: (-row[token], token))[:count]
    assert ids.tolist() == [ranked]
    assert values.tolist() == [[row[token] for token in ranked]]


def test_the_most_likely_tokens_of_a_large_vocabulary_tie_by_the_lowest_id() -> None:
    row = (torch.randn(40_001, generator=torch.Generator().manual_seed(3)) * 3).bfloat16().float()
    ranked = np.lexsort((np.arange(len(row)), -row.numpy()))
    for count in (1, 50, 256, 8192, 40_000, 40_001, 50_000):
        assert top(row[None], count)[1].tolist() == [ranked[:count].tolist()]


def test_a_row_with_nan_still_gives_as_many_tokens_as_are_asked_for() -> None:
    rows = torch.arange(30.0).repeat(2, 1)
    rows[1, :20] = math.nan
    _, ids = top(rows, 5)
    assert ids.shape == (2, 5)
    assert ids[0].tolist() == [29, 28, 27, 26, 25]


def test_rows_are_selected_without_a_copy_where_they_lie_side_by_side() -> None:
    rows = torch.arange(12.0).view(6, 2)
    assert select(rows, [0, 1, 2, 3, 4, 5]) is rows
    assert select(rows, [2, 3]).data_ptr() == rows[2].data_ptr()
    assert select(rows, np.array([1, 4])).tolist() == [[2.0, 3.0], [8.0, 9.0]]


@pytest.mark.parametrize("vocab_size", [97, 40_001])
def test_weights_have_the_same_bits_whatever_the_number_of_threads_and_rows(vocab_size: int) -> None:
    mass, found = Mass(vocab_size, "cpu"), []
    num_rows = mass.num_rows
    rows = torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(5)) * 4
    peaks, temperature = rows.amax(dim=-1).numpy(), np.linspace(0.2, 3.0, num_rows)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            together = mass.fill(rows, peaks, temperature)
            alone = [mass.fill(rows[i : i + 1], peaks[i : i + 1], temperature[i : i + 1]) for i in range(num_rows)]
            found += [together, np.concatenate(alone)]
    finally:
        torch.set_num_threads(before)
    expected = np.exp((rows.double().numpy() - peaks[:, None]) / temperature[:, None]).sum(axis=1)
    assert np.allclose(found[0].sum(axis=1), expected, rtol=1e-6)
    assert all((sums == found[0]).all() for sums in found)
