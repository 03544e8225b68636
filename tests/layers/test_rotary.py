"""The tables of rotary embeddings, against transformers' frequencies."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from vllm.layers.rotary import Rope, Rotary, Unstretched, cos_sin_table
from vllm.models.rope import rope_of

HEAD_DIM, ORIGINAL = 32, 64
PARAMETERS: dict[str, dict[str, Any]] = {
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
    "longrope": {
        "short_factor": [1 + 0.1 * i for i in range(HEAD_DIM // 2)],
        "long_factor": [1 + 0.5 * i for i in range(HEAD_DIM // 2)],
        "original_max_position_embeddings": 48,
    },
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}


@pytest.mark.parametrize("max_model_len", [40, 48, 49, 64, 200])
@pytest.mark.parametrize("kind", PARAMETERS)
def test_a_table_is_frozen_at_the_longest_sequence(kind: str, max_model_len: int) -> None:
    parameters = {"rope_type": kind, "rope_theta": 5000.0, **PARAMETERS[kind]}
    config = LlamaConfig(head_dim=HEAD_DIM, max_position_embeddings=ORIGINAL, rope_parameters=parameters)
    frequencies, factor = ROPE_INIT_FUNCTIONS[kind](config, seq_len=max_model_len)
    angles = torch.arange(max_model_len).float()[:, None] * frequencies
    table = cos_sin_table(rope_of(config, HEAD_DIM), max_model_len)
    assert table.dtype == torch.float32
    torch.testing.assert_close(table, factor * torch.cat((angles.cos(), angles.sin()), 1), rtol=0, atol=2e-5)


def test_a_theta_times_the_factor_interpolates_the_slowest_pair_by_it() -> None:
    parameters = {"rope_type": "ntk", "rope_theta": 5000.0, "factor": 4.0}
    rope = rope_of(SimpleNamespace(rope_parameters=parameters, max_position_embeddings=ORIGINAL), HEAD_DIM)
    found, factor = rope.stretch.frequencies(rope.theta, rope.width, 100)
    plain = 5000.0 ** -(torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    torch.testing.assert_close(plain[-1] / found[-1], torch.tensor(4.0), rtol=1e-4, atol=0)
    torch.testing.assert_close(plain[0] / found[0], torch.tensor(4.0 ** (2 / HEAD_DIM)), rtol=1e-4, atol=0)
    assert factor == 1.0


def test_part_of_a_head_is_rotated_in_whole_pairs() -> None:
    config = LlamaConfig(head_dim=20, rope_parameters={"rope_type": "default", "rope_theta": 1e4})
    config.rope_parameters["partial_rotary_factor"] = 0.25
    assert rope_of(config, 20).width == 5
    assert cos_sin_table(rope_of(config, 20), 7).shape == (7, 6)


def test_neighbours_are_paired_if_interleaved() -> None:
    halves = Rotary(Rope(1e4, 8, Unstretched()), 32, torch.device("cpu"))
    neighbours = Rotary(Rope(1e4, 8, Unstretched(), interleaved=True), 32, torch.device("cpu"))
    q, k, positions = torch.randn(5, 2, 8), torch.randn(5, 1, 8), torch.randint(32, (5,))
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])
    for one, other in zip(halves(q[..., order], k[..., order], positions), neighbours(q, k, positions), strict=True):
        torch.testing.assert_close(one, other[..., order])
