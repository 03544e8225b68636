"""What the operations compute, against torch's own or a formula written out."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tests.ops.conftest import matrix_of
from vllm import ops
from vllm.ops.activations import activation, gated_activation
from vllm.ops.linear import linear
from vllm.ops.moe import Routing


@pytest.fixture(autouse=True)
def _a_seed() -> None:
    torch.manual_seed(0)


EXPECTED = {
    "silu": F.silu,
    "swish": F.silu,
    "gelu": F.gelu,
    "gelu_python": F.gelu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x) ** 2,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


@pytest.mark.parametrize("name", ops.ACTIVATIONS)
def test_an_activation_computes_what_its_name_says_far_out_too(name: str) -> None:
    x = torch.cat((torch.linspace(-8, 8, 999), torch.tensor([-1e4, -200.0, -90.0, 0.0, 90.0, 1e4])))
    expected = EXPECTED.get(name, lambda x: F.gelu(x, approximate="tanh"))(x.double())
    torch.testing.assert_close(activation(x, name).double(), expected, rtol=1e-5, atol=1e-6)


def test_a_gate_comes_before_up() -> None:
    gate, up = torch.randn(3, 5), torch.randn(3, 5)
    torch.testing.assert_close(gated_activation(torch.cat((gate, up), 1), "silu"), F.silu(gate) * up)


def test_half_precision_activations_are_rounded_once() -> None:
    x = torch.randn(1000).bfloat16()
    assert torch.equal(activation(x, "gelu"), activation(x.float(), "gelu").bfloat16())


def test_norms_agree_with_torch() -> None:
    x, weight, bias = torch.randn(9, 33) * 3 + 1, torch.randn(33), torch.randn(33)
    torch.testing.assert_close(ops.rms_norm(x, weight, 1e-3), F.rms_norm(x, (33,), weight, 1e-3))
    torch.testing.assert_close(ops.rms_norm(x, weight, 1e-3, 1.0), F.rms_norm(x, (33,), weight + 1, 1e-3))
    torch.testing.assert_close(ops.layer_norm(x, weight, bias, 1e-3), F.layer_norm(x, (33,), weight, bias, 1e-3))


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_turns_pairs_and_leaves_the_rest(interleaved: bool) -> None:
    q, k, angles = torch.randn(4, 2, 10), torch.randn(4, 1, 10), torch.rand(50, 3) * 6
    positions = torch.tensor([49, 0, 7, 7])
    table = torch.cat((angles.cos(), angles.sin()), 1)
    for before, after in zip((q, k), ops.rotary(q.clone(), k.clone(), table, positions, interleaved), strict=True):
        assert torch.equal(after[..., 6:], before[..., 6:])
        for pair in range(3):
            i, j = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + 3)
            turn = torch.exp(1j * angles[positions, pair])[:, None]
            expected = torch.complex(before[..., i], before[..., j]) * turn
            torch.testing.assert_close(torch.complex(after[..., i], after[..., j]), expected)


def test_experts_are_weighted_by_their_probabilities() -> None:
    x, logits = torch.randn(6, 8), torch.randn(6, 4)
    gate_up, down = torch.randn(4, 10, 8), torch.randn(4, 8, 5)
    experts = [matrix_of(w, gated=True) for w in gate_up], [matrix_of(w) for w in down]
    for renormalize in (False, True):
        weights, ids = ops.route(logits, Routing(2, renormalize))
        got = ops.moe(x, weights, ids, *experts, activation="relu")
        for token in range(6):
            best = sorted(range(4), key=lambda expert: -logits[token, expert].item())[:2]
            odds = [math.exp(logits[token, expert]) for expert in best]
            total = sum(odds) if renormalize else logits[token].exp().sum().item()
            outputs = [F.relu(x[token] @ gate_up[e, :5].T) * (x[token] @ gate_up[e, 5:].T) @ down[e].T for e in best]
            expected = sum(odd / total * output for odd, output in zip(odds, outputs, strict=True))
            torch.testing.assert_close(got[token], expected, rtol=1e-4, atol=1e-5)


def test_an_empty_step_of_rows_is_no_special_case_for_linear() -> None:
    assert linear(torch.randn(0, 4), torch.randn(3, 4)).shape == (0, 3)
