"""The block pool alone: a state machine against a plain model of who holds what."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vllm.kv_cache.cache import KVCache
from vllm.kv_cache.hashing import chain_root, extend_chain
from vllm.kv_cache.pool import BlockPool
from vllm.kv_cache.spec import NULL_BLOCK, CacheGroup, Chunk, Full, State, Window, group_layers


class PoolMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(8)
        self.tables: list[list[int]] = []
        self.names = 0

    @rule(count=st.integers(0, 4))
    def take(self, count: int) -> None:
        if count <= self.pool.num_free:
            self.tables.append(self.pool.take(count))

    @precondition(lambda self: self.tables)
    @rule(pick=st.integers(0, 99))
    def share(self, pick: int) -> None:
        table = self.tables[pick % len(self.tables)]
        self.pool.share(table)
        self.tables.append(list(table))

    @precondition(lambda self: self.tables)
    @rule(pick=st.integers(0, 99))
    def release(self, pick: int) -> None:
        self.pool.release(self.tables.pop(pick % len(self.tables)))

    @precondition(lambda self: any(self.tables))
    @rule(pick=st.integers(0, 99), name=st.integers(0, 5))
    def register(self, pick: int, name: int) -> None:
        blocks = [block for table in self.tables for block in table]
        self.pool.register(blocks[pick % len(blocks)], bytes([name]))

    @rule(name=st.integers(0, 5))
    def find_and_share(self, name: int) -> None:
        block = self.pool.find(bytes([name]))
        if block is not None:
            self.pool.share([block])
            self.tables.append([block])

    @rule()
    def forget(self) -> None:
        self.pool.forget()

    @invariant()
    def holds(self) -> None:
        self.pool.check(self.tables)


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def test_the_least_recently_released_block_is_evicted_first() -> None:
    pool = BlockPool(4)
    first, second, third = pool.take(3)
    for block, name in ((first, b"1"), (second, b"2"), (third, b"3")):
        pool.register(block, name)
    pool.release([second])
    pool.release([first, third])
    assert pool.take(2) == [second, first]
    assert pool.find(b"3") == third


def test_taking_more_than_there_is_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        BlockPool(3).take(3)


def test_releasing_twice_is_a_bug() -> None:
    pool = BlockPool(3)
    blocks = pool.take(1)
    pool.release(blocks)
    with pytest.raises(AssertionError):
        pool.release(blocks)


def test_a_hash_names_everything_before_it() -> None:
    def chain(tokens: list[int], salt: str | None = None) -> list[bytes]:
        hashes: list[bytes] = []
        extend_chain(hashes, chain_root(salt), tokens, 2, len(tokens) // 2)
        return hashes

    assert chain([1, 2, 3, 4])[0] == chain([1, 2, 9, 9])[0]
    assert chain([1, 2, 3, 4])[1] != chain([9, 9, 3, 4])[1]
    assert chain([1, 2]) != chain([1, 2], "salt")
    assert chain([1, 2], "") != chain([1, 2])


def test_a_chain_may_be_extended_in_parts() -> None:
    whole: list[bytes] = []
    parts: list[bytes] = []
    tokens = list(range(12))
    extend_chain(whole, chain_root(None), tokens, 4, 3)
    extend_chain(parts, chain_root(None), tokens, 4, 1)
    extend_chain(parts, b"", tokens, 4, 3)
    assert whole == parts


def test_a_window_holds_what_its_tokens_see() -> None:
    window = Window(1, 1, 1, size=6)
    assert [window.num_stale(n, 4) for n in (0, 5, 8, 9, 12, 13)] == [0, 0, 0, 1, 1, 2]
    for start in range(40):
        for count in range(1, 9):
            end = start + count
            held = -(-end // 4) - window.num_stale(start, 4)
            assert held <= window.blocks_at_most(end, 8, 4)


@pytest.mark.parametrize(("before", "stale"), [(0, [0, 0, 2, 2, 4, 6]), (1, [0, 0, 0, 0, 2, 4])])
def test_a_chunk_holds_what_its_tokens_see(before: int, stale: list[int]) -> None:
    chunk = Chunk(1, 1, 1, size=8, before=before)
    assert [chunk.num_stale(n, 4) for n in (0, 7, 8, 15, 16, 25)] == stale
    for start in range(40):
        for count in range(1, 9):
            end = start + count
            held = -(-end // 4) - chunk.num_stale(start, 4)
            assert held <= chunk.blocks_at_most(end, 8, 4)


def test_layers_with_equal_needs_form_a_group() -> None:
    full, window = Full(2, 8, 8), Window(2, 8, 8, 4)
    groups = group_layers([window, full, window, full])
    assert [(group.spec, group.layers) for group in groups] == [(window, (0, 2)), (full, (1, 3))]


@pytest.mark.parametrize("interval", [8, 12, 512])
@pytest.mark.parametrize("step", [1, 3, 4, 9, 30])
def test_a_sequence_holds_as_many_states_as_is_said(interval: int, step: int) -> None:
    state = State((), interval=interval)
    cache = KVCache([CacheGroup(state, (0,))], [40], 4, step, prefix_caching=True)
    tables = cache.new_tables()
    for start in range(0, 100, step):
        cache.trim(tables, max(0, start - step), start)
        assert cache.extend(tables, start + step)
        held = [index for index, block in enumerate(tables[0]) if block != NULL_BLOCK]
        assert len(held) <= state.blocks_at_most(start + step, step, 4)
        last = (start + step - 1) // 4
        assert last in held and (last == 0 or last - 1 in held)
        cache.check([tables])


def test_a_step_leaves_states_at_intervals_and_at_its_last_border() -> None:
    state = State((), interval=12)
    assert list(state.fills(0, 10, 4)) == [2, 5, 8, 9]
    assert list(state.fills(3, 11, 4)) == [5, 8, 9, 10]
    assert list(state.fills(6, 7, 4)) == [6]
    assert list(state.fills(6, 6, 4)) == []
