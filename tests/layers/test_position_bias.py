"""Biases for distances, against transformers' own."""

from __future__ import annotations

import pytest
import torch
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

from vllm.layers.placement import Placement
from vllm.layers.position_bias import Buckets, RelativeBias, alibi_slopes, bucket_of


@pytest.mark.parametrize("count", [8, 32, 64])
def test_every_distance_falls_into_the_bucket_of_transformers(count: int) -> None:
    distances = torch.arange(-300, 301)
    expected = MPNetEncoder.relative_position_bucket(distances, num_buckets=count)
    assert torch.equal(bucket_of(distances, Buckets(count)), expected)


def test_a_table_holds_the_bias_of_every_distance_and_the_farthest_for_those_beyond() -> None:
    buckets, stored = Buckets(32), torch.randn(32, 4)
    bias = RelativeBias(4, buckets, "bias", Placement(torch.float32, torch.device("cpu")))
    (window,) = bias.windows()
    assert window.cut is not None
    window.place.put(window.cut(stored))
    for distance in (-500, -128, -7, 0, 1, 8, 127, 128, 999):
        entry = min(max(distance, -128), 128) + 128
        assert torch.equal(bias.table[:, entry], stored[bucket_of(torch.tensor(distance), buckets)])


def test_slopes_of_a_power_of_two_are_a_geometric_series() -> None:
    slopes = alibi_slopes(16)
    torch.testing.assert_close(slopes[1:] / slopes[:-1], torch.full((15,), 2**-0.5))
    assert slopes[-1] == 2**-8
