"""The choice of tokens on a GPU, against a sort."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.triton import DEVICE
from vllm.ops import rising_keys
from vllm.ops.triton.sampling import choose, greatest

pytestmark = pytest.mark.usefixtures("all_there")


def survivors(logits: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float) -> dict[int, float]:
    """Return the probabilities of the tokens that the filters leave, by a sort."""
    order = np.lexsort((np.arange(len(logits)), -logits))
    weights = np.exp((logits[order] - logits.max()) / temperature)
    weights[weights < min_p] = 0
    if top_k:
        weights[top_k:] = 0
    ends = np.cumsum(weights)
    weights[1:][ends[:-1] >= top_p * ends[-1] * (1 - 1e-6)] = 0
    return {int(token): weight / weights.sum() for token, weight in zip(order, weights, strict=True) if weight > 0}


LOGITS = st.lists(
    st.floats(-30, 30, width=32) | st.sampled_from([0.0, -0.0, 1.5, 1.5, 2.0, -np.inf]), min_size=1, max_size=70
)


@given(
    logits=LOGITS.filter(lambda values: max(values) > -np.inf),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 2, 5, 200]),
    top_p=st.sampled_from([1.0, 0.9, 0.5, 0.01]),
    min_p=st.sampled_from([0.0, 0.05, 0.9]),
)
@settings(max_examples=60, deadline=None)
def test_what_is_drawn_is_what_the_filters_leave(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    """Uniform numbers at the middle of each token's share, in order of ids, draw each token that is left."""
    values = np.array(logits, dtype=np.float32)
    left = survivors(values.astype(np.float64), temperature, top_k, top_p, min_p)
    ids = sorted(token for token, share in left.items() if share > 1e-5)
    ends = np.cumsum([left[token] for token in sorted(left)])
    middles = {token: end - left[token] / 2 for token, end in zip(sorted(left), ends, strict=True)}
    rows = torch.from_numpy(values).to(DEVICE).repeat(len(ids), 1)
    controls = (
        torch.tensor([[temperature, top_k, top_p, min_p, middles[token]] for token in ids]).float().T.contiguous()
    )
    tokens, peaks, _ = choose(rows, controls)
    assert tokens.tolist() == ids
    assert peaks.tolist() == [float(values.max())] * len(ids)


@given(logits=st.lists(LOGITS, min_size=1, max_size=4), unsound=st.sampled_from([np.nan, np.inf]))
@settings(max_examples=30, deadline=None)
def test_greedy_rows_take_the_first_of_the_greatest_and_unsound_ones_show(
    logits: list[list[float]], unsound: float
) -> None:
    width = min(map(len, logits))
    rows = torch.tensor([row[:width] for row in logits])
    bad = rows[:1].clone()
    bad[0, -1] = unsound
    controls = torch.zeros(5, len(rows) + 1)
    controls[2] = 1
    chosen, peaks, _ = choose(torch.cat((rows, bad)), controls)
    for tokens, best in ((chosen, peaks), greatest(torch.cat((rows, bad)))[::-1]):
        assert tokens.tolist()[:-1] == rows.cpu().numpy().argmax(1).tolist()
        assert best.tolist()[:-1] == rows.amax(1).tolist()
        assert not np.isfinite(best.tolist()[-1])


@given(vocab_size=st.integers(1, 9000), rows=st.integers(1, 3), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_a_row_that_programs_share_gives_its_first_greatest(vocab_size: int, rows: int, seed: int) -> None:
    logits = torch.randint(0, 40, (rows, vocab_size), generator=torch.Generator(DEVICE).manual_seed(seed)).float()
    peaks, tokens = greatest(logits)
    assert tokens.tolist() == logits.cpu().numpy().argmax(1).tolist() and peaks.tolist() == logits.amax(1).tolist()


def test_keys_rise_with_logits() -> None:
    values = torch.tensor([-torch.inf, -3.0, -1e-40, -0.0, 0.0, 1e-40, 2.0, torch.inf])
    found = rising_keys(values).tolist()
    assert found == sorted(found) and found[3] == found[4]
