"""The floor is what the written formulas say, against figures reckoned by hand for the shape of Qwen2.5-0.5B."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks.floor import Roof, cache_bytes, chain_bytes, floor, prompt_operations, token_operations
from benchmarks.shapes import PRECISIONS, QWEN_HALF_BILLION, Shape
from benchmarks.workloads import Request, Workload, workloads

SHAPE = QWEN_HALF_BILLION
TINY = Shape(hidden=4, layers=1, heads=2, kv_heads=1, intermediate=8, vocab=10)


def test_the_shape_has_the_weights_of_the_model_it_is_called_after() -> None:
    assert SHAPE.body_weights + SHAPE.head_weights == pytest.approx(494.0e6, rel=1e-3)
    assert SHAPE.head_weights == pytest.approx(136.1e6, rel=1e-3)
    assert cache_bytes(SHAPE) == 12288


def test_a_token_costs_two_operations_per_weight_and_attention_to_all_before_it() -> None:
    weights = 4 * 4 * 2 + 4 * 2 * 2 + 3 * 4 * 8
    assert TINY.body_weights == weights
    attention = 4 * TINY.heads * TINY.head_dim
    assert token_operations(0, 1, TINY) == 2 * weights + attention
    assert token_operations(0, 3, TINY) == 3 * 2 * weights + attention * (1 + 2 + 3)
    assert token_operations(0, 5, TINY) == token_operations(0, 2, TINY) + token_operations(2, 5, TINY)


def test_a_chain_reads_all_weights_and_its_growing_context_in_every_step() -> None:
    weights = (TINY.body_weights + TINY.head_weights) * 2.0
    assert chain_bytes(2, 5, TINY, PRECISIONS["bf16"]) == 2 * weights + (5 + 6) * cache_bytes(TINY)


@pytest.mark.parametrize(
    ("workload", "measure", "precision", "by_hand"),
    [
        ("W1", "first_token", "bf16", 0.210),
        ("W1", "first_token", "int8", 0.105),
        ("W1", "decode_rate", "bf16", 41.5),
        ("W1", "decode_rate", "int8", 78.0),
        ("W1", "decode_rate", "int4", 147.0),
        ("W2", "output_rate", "bf16", 182.0),
        ("W2", "output_rate", "int8", 363.0),
        ("W3", "first_token", "bf16", 3.74),
        ("W3", "first_token", "int8", 1.9),
        ("W4", "total", "bf16", 3.9),
    ],
)
def test_the_floors_are_those_reckoned_by_hand(
    workload: str, measure: str, precision: str, by_hand: float, roof: Roof
) -> None:
    found = floor(workloads()[workload], measure, SHAPE, PRECISIONS[precision], roof)
    assert found == pytest.approx(by_hand, rel=0.03)


def test_a_shared_beginning_is_computed_once() -> None:
    requests = [Request([1] * 20, 1), Request([1] * 20, 1)]
    apart = prompt_operations(requests, 0, SHAPE)
    shared = prompt_operations(requests, 15, SHAPE)
    assert apart - shared == token_operations(0, 15, SHAPE)


@pytest.mark.parametrize("measure", ["first_token", "decode_rate", "output_rate", "total"])
def test_half_the_machine_is_at_best_half_as_fast(measure: str, roof: Roof) -> None:
    workload = Workload("W", "", [Request(list(range(64)), 9)], (measure,))
    half = Roof(**{name: value / 2 for name, value in dataclasses.asdict(roof).items()})
    whole_floor = floor(workload, measure, SHAPE, PRECISIONS["bf16"], roof)
    half_floor = floor(workload, measure, SHAPE, PRECISIONS["bf16"], half)
    assert whole_floor is not None
    assert half_floor == pytest.approx(whole_floor * (0.5 if measure.endswith("rate") else 2.0))


def test_without_the_rate_of_its_arithmetic_there_is_no_floor(roof: Roof) -> None:
    blind = dataclasses.replace(roof, int8=0.0)
    workload = workloads()["W1"]
    assert floor(workload, "first_token", SHAPE, PRECISIONS["int4"], blind) is None
    assert floor(workload, "first_token", SHAPE, PRECISIONS["bf16"], blind) is not None
