"""Activations at the end of a product, over all that a float can be: the product is with the one weight 1."""

from __future__ import annotations

import pytest
import torch

from tests.ops.conftest import matrix_of
from vllm import ops
from vllm.ops.activations import activation

SPECIAL = [torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 1e30, -1e30, 1e-30, 100.0, -100.0, 88.5, -88.5]


@pytest.mark.parametrize("name", ops.ACTIVATIONS)
def test_an_activation_is_as_exact_far_out_as_near_zero(name: str) -> None:
    x = torch.cat((torch.linspace(-12, 12, 4001), torch.logspace(-8, 0, 99), torch.tensor(SPECIAL)))
    got = matrix_of(torch.ones(1, 1)).multiply(x[:, None], activation=name)[:, 0]
    torch.testing.assert_close(got, activation(x, name), rtol=2e-6, atol=1e-6, equal_nan=True)
    # near zero what is linear there stays exact in its own size
    small = torch.cat((torch.logspace(-30, -3, 99), -torch.logspace(-30, -3, 99)))
    got = matrix_of(torch.ones(1, 1)).multiply(small[:, None], activation=name)[:, 0]
    torch.testing.assert_close(got.double(), activation(small.double().float(), name).double(), rtol=2e-6, atol=0)
