"""Sequences of recurrent layers: their states are found, forked and given back."""

from __future__ import annotations

import pytest

from vllm.kv_cache.spec import CacheSpec, State
from vllm.scheduler.request import sibling_seed

from .conftest import FULL, Toy
from .fake_worker import generate
from .test_scheduler import PROMPT, search

STATE = State((), interval=8)
KINDS = {"alone": (STATE,), "beside attention": (FULL, STATE)}


@pytest.fixture(params=KINDS)
def specs(request: pytest.FixtureRequest) -> tuple[CacheSpec, ...]:
    return KINDS[request.param]


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("length", [9, 10, 12, 13])
def test_a_second_equal_prompt_goes_on_from_its_last_border(
    specs: tuple[CacheSpec, ...], length: int, depth: int
) -> None:
    prompt = (PROMPT * 2)[:length]
    toy = Toy(specs=specs, depth=depth)
    for name in ("a", "b"):
        toy.add(name, prompt)
        toy.run()
        assert toy.tokens[name, 0] == generate(prompt, 5)
    assert toy.finished["b", 0].num_cached == (length - 1) // 4 * 4


def test_a_shared_beginning_is_found_at_an_interval(specs: tuple[CacheSpec, ...]) -> None:
    stem = PROMPT * 2
    toy = Toy(specs=specs, max_num_batched_tokens=64)
    toy.add("a", [*stem, *range(20, 40)], 2)
    toy.run()
    toy.add("b", [*stem, *range(40, 50)], 2)
    toy.run()
    assert toy.finished["b", 0].num_cached == 16


def test_a_turn_of_a_conversation_goes_on_from_the_one_before(specs: tuple[CacheSpec, ...]) -> None:
    toy = Toy(specs=specs)
    toy.add("a", PROMPT, 12)
    toy.run()
    toy.add("b", [*PROMPT, *toy.tokens["a", 0], 5, 6], 2)
    toy.run()
    assert toy.finished["b", 0].num_cached == 20


@pytest.mark.parametrize("prefix_caching", [True, False])
@pytest.mark.parametrize("budget", [3, 16])
@pytest.mark.parametrize("length", [1, 2, 4, 5, 8, 9, 10])
def test_siblings_share_the_prompt_up_to_its_last_border(
    specs: tuple[CacheSpec, ...], length: int, budget: int, prefix_caching: bool
) -> None:
    prompt = PROMPT[:length]
    toy = Toy(specs=specs, prefix_caching=prefix_caching, max_num_batched_tokens=budget)
    toy.add("a", prompt, 4, n=4, temperature=1.0, seed=7)
    toy.run()
    for index in range(4):
        assert toy.tokens["a", index] == generate(prompt, 4, seed=sibling_seed(7, index))
    behind_border = length - (length - 1) // 4 * 4
    assert toy.computed == length + 3 * 4 + 3 * behind_border


@pytest.mark.parametrize("num_blocks", [9, 40])
def test_beams_take_their_states_along(specs: tuple[CacheSpec, ...], num_blocks: int) -> None:
    toy = Toy(num_blocks, specs=specs, max_model_len=24)
    toy.add_beams("a", PROMPT, 3, 6)
    toy.run()
    assert [beam.token_ids for beam in toy.finished["a", 0].beams] == [ids for ids, _ in search(PROMPT, 3, 6, end=3)]


def test_a_long_sequence_holds_few_states() -> None:
    toy = Toy([STATE.blocks_at_most(60, 8, 4) + 1], specs=(STATE,), max_num_batched_tokens=8)
    toy.add("a", PROMPT * 4, 20)
    toy.run()
    assert toy.tokens["a", 0] == generate(PROMPT * 4, 20)
