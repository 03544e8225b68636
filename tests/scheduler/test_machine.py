"""Random lives of the scheduler; every invariant after every step, every token at the end.  And proof that the machine
catches bugs: each seeded one must make some random life fail."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from types import MappingProxyType

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from vllm.kv_cache import hashing
from vllm.kv_cache.cache import KVCache
from vllm.kv_cache.pool import BlockPool
from vllm.kv_cache.spec import CacheSpec, State, Window
from vllm.messages import Batch, Media
from vllm.scheduler import request as request_module
from vllm.scheduler.encodings import Encodings
from vllm.scheduler.request import sibling_seed
from vllm.scheduler.scheduler import Scheduler

from .conftest import FULL, Toy
from .fake_worker import generate
from .test_scheduler import search


def specs_of(kind: str, size: int) -> tuple[CacheSpec, ...]:
    """The cache groups of a kind of model."""
    window, state = Window(1, 1, 1, size=size), State((), interval=8)
    return {"full": (FULL,), "window": (FULL, window), "state": (state,), "hybrid": (FULL, state)}[kind]


LONGEST = 32
KEYS = [b"a", b"b", b"c", b"d"]
STEMS = [[1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 3, 4, 9, 9], [4, 3, 2, 1] * 3]


LENGTHS = {b"a": 4, b"b": 7, b"c": 5, b"d": 8}
"""Positions of media that all tokens attend to"""
ROOM = 24
"""For three of them, each in whole blocks"""


def illustrated(
    stem: list[int], pictures: list[tuple[bytes, int]], lengths: Mapping[bytes, int] = MappingProxyType({})
) -> tuple[list[int], list[Media]]:
    """A prompt with media of three tokens, each after as many tokens of the stem as it says."""
    prompt, media = list(stem), []
    for key, gap in pictures:
        first = len(prompt) + gap
        prompt += [1] * gap + [10] * 3
        media.append(Media("image", key, [(first, first + 3)], {}, length=lengths.get(key, 0)))
    return [*prompt, 2], media


class SchedulerMachine(RuleBasedStateMachine):
    """Requests come, share, fork, are aborted and preempted, in any order; steps fail."""

    def __init__(self) -> None:
        super().__init__()
        self.num_faults = 0
        self.faults_due = 0
        self.poison: set[int] = set()
        self.count = 0
        self.plain: dict[str, tuple[list[int], int, int]] = {}
        self.media: dict[str, list[Media]] = {}
        self.beams: dict[str, tuple[list[int], int, int]] = {}

    @initialize(
        num_blocks=st.integers(9, 24),
        seqs=st.integers(1, 5),
        budget=st.integers(1, 20),
        kind=st.sampled_from(["full", "window", "state", "hybrid"]),
        size=st.integers(2, 9),
        caching=st.booleans(),
        policy=st.sampled_from(["fcfs", "priority"]),
        depth=st.integers(1, 3),
        media=st.sampled_from(["cut", "whole", "lasting"]),
    )
    def start(
        self,
        *,
        num_blocks: int,
        seqs: int,
        budget: int,
        kind: str,
        size: int,
        caching: bool,
        policy: str,
        depth: int,
        media: str,
    ) -> None:
        budget = max(budget, 3) if media == "whole" else budget
        self.lasting = media == "lasting"
        specs = specs_of(kind, size)
        blocks = [num_blocks, *(max(8, num_blocks - 2) for _ in specs[1:])]
        limits = {"max_num_seqs": seqs, "max_num_batched_tokens": budget, "max_model_len": LONGEST}
        self.toy = Toy(
            blocks,
            specs=specs,
            prefix_caching=caching,
            policy=policy,
            depth=depth,
            whole_media=media == "whole",
            source_tokens=ROOM if self.lasting else None,
            **limits,
        )
        self.toy.fault = self.fault

    def fault(self, batch: Batch) -> bool:
        """A step fails by chance, or whenever a row is in it that makes it fail."""
        if self.faults_due:
            self.faults_due -= 1
            self.num_faults += 1
            return True
        slots = self.toy.worker.slots
        return any(slots[row.slot].sequence.seed in self.poison and row.wants_token for row in batch.rows)

    @rule()
    def break_a_step(self) -> None:
        self.faults_due += 1

    @rule(stem=st.sampled_from(STEMS), length=st.integers(1, 8))
    def add_poison(self, stem: list[int], length: int) -> None:
        name = f"r{self.count}"
        self.count += 1
        self.poison.add(self.count)
        self.plain[name] = (stem, length, 1)
        self.toy.add(name, stem, length, temperature=1.0, seed=self.count, end=3)

    @rule(
        stem=st.sampled_from(STEMS),
        tail=st.lists(st.integers(0, 10), max_size=4),
        length=st.integers(1, 8),
        n=st.integers(1, 3),
        priority=st.integers(0, 2),
        salt=st.sampled_from([None, "s"]),
    )
    def add(self, stem: list[int], tail: list[int], length: int, n: int, priority: int, salt: str | None) -> None:
        name = f"r{self.count}"
        self.count += 1
        priority = priority if self.toy.scheduler.config.policy == "priority" else 0
        self.plain[name] = (stem + tail, length, n)
        self.toy.add(
            name, stem + tail, length, n=n, temperature=1.0, priority=priority, salt=salt, seed=self.count, end=3
        )
        self.plain[name] = (stem + tail, length, n)

    @rule(
        stem=st.sampled_from(STEMS[:2]),
        pictures=st.lists(st.tuples(st.sampled_from(KEYS), st.integers(0, 2)), min_size=1, max_size=3),
        length=st.integers(1, 8),
        n=st.integers(1, 2),
    )
    def add_media(self, stem: list[int], pictures: list[tuple[bytes, int]], length: int, n: int) -> None:
        name = f"r{self.count}"
        self.count += 1
        prompt, self.media[name] = illustrated(stem, pictures, LENGTHS if self.lasting else {})
        length = min(length, LONGEST - len(prompt))
        self.toy.add(name, prompt, length, n=n, temperature=1.0, seed=self.count, end=3, media=self.media[name])
        self.plain[name] = (prompt, length, n)

    @precondition(lambda self: len(self.beams) < 2)
    @rule(stem=st.sampled_from(STEMS), width=st.integers(1, 3), length=st.integers(1, 6))
    def add_beams(self, stem: list[int], width: int, length: int) -> None:
        name = f"b{self.count}"
        self.count += 1
        self.beams[name] = (stem, width, length)
        self.toy.add_beams(name, stem, width, length)

    @rule(steps=st.integers(1, 4))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.toy.step()

    @precondition(lambda self: self.plain)
    @rule(pick=st.integers(0, 99))
    def abort(self, pick: int) -> None:
        name = sorted(self.plain)[pick % len(self.plain)]
        del self.plain[name]
        self.toy.scheduler.abort(name)

    @rule()
    def forget_prefixes(self) -> None:
        self.toy.cache.reset()

    @invariant()
    def holds(self) -> None:
        if self.count:
            self.toy.scheduler.check()

    def teardown(self) -> None:
        if not self.count:
            return
        self.toy.run()
        num_failed = 0
        for name, (prompt, length, n) in self.plain.items():
            seed = int(name[1:]) + 1
            for index in range(n):
                expected = generate(prompt, length, sibling_seed(seed, index), 3, self.media.get(name))
                if self.toy.finished[name, index].error is None:
                    assert self.toy.tokens[name, index] == expected
                    assert seed not in self.poison
                else:
                    num_failed += seed not in self.poison
        for name, (prompt, width, length) in self.beams.items():
            if self.toy.finished[name, 0].error is not None:
                num_failed += 1
                continue
            beams = [(beam.token_ids, pytest.approx(beam.score)) for beam in self.toy.finished[name, 0].beams]
            assert beams == search(prompt, width, length, end=3)
        assert num_failed <= self.num_faults, "a request without fault was blamed"


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)


# ── seeded bugs ─────────────────────────────────────────────────────────────────────────────────────────────────────


def random_lives(lives: int = 40) -> None:
    """A quicker driver than hypothesis for the seeded bugs: no shrinking."""
    for seed in range(lives):
        rng = random.Random(seed)
        specs = specs_of(("full", "state", "window", "hybrid")[seed % 4], size=5)
        limits = {"max_num_seqs": rng.randint(1, 5), "max_num_batched_tokens": rng.randint(4, 20), "max_model_len": 32}
        toy = Toy(rng.randint(9, 14), specs=specs, depth=rng.randint(1, 3), **limits)
        expected: dict[tuple[str, int], list[int]] = {}
        roots: list[tuple[str | None, list[int]]] = []
        for number in range(8):
            prompt = rng.choice([*STEMS, STEMS[0][:8]]) + [rng.randint(0, 10) for _ in range(rng.randint(0, 2))]
            if rng.random() < 0.2:
                prompt = [rng.randint(0, 10), *prompt[1:]]  # the same later blocks after another first one
            n, salt, length = rng.randint(1, 3), rng.choice([None, "s"]), rng.randint(1, 8)
            media: list[Media] = []
            if rng.random() < 0.3:
                prompt, media = illustrated(prompt[:5], [(rng.choice(KEYS), 0), (rng.choice(KEYS), 0)])
            toy.add(f"r{number}", prompt, length, n=n, temperature=1.0, salt=salt, seed=number, media=media)
            roots.append((salt, prompt[:4]))
            for i in range(n):
                expected[f"r{number}", i] = generate(prompt, length, sibling_seed(number, i), media=media)
            for _ in range(rng.randint(0, 3)):
                toy.step()
        toy.run()
        assert toy.tokens == expected
        check_hits(toy, roots)


def check_hits(toy: Toy, roots: list[tuple[str | None, list[int]]]) -> None:
    """A prefix hit needs an earlier request with the same salt and first block."""
    if toy.scheduler.stats.num_preemptions:  # then a request may have found its own blocks
        return
    for number, root in enumerate(roots):
        assert not toy.finished[f"r{number}", 0].num_cached or root in roots[:number], "a hit across salts"


def test_random_lives_without_a_bug_pass() -> None:
    random_lives()


def leak_on_finish(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(KVCache, "release", lambda self, tables: [table.clear() for table in tables])


def hash_without_chain(patch: pytest.MonkeyPatch) -> None:
    def extend(
        hashes: list[bytes], root: bytes, tokens: list[int], block_size: int, num_blocks: int, named: object
    ) -> None:
        for block in range(len(hashes), num_blocks):
            hashes.append(bytes(tokens[block * block_size : (block + 1) * block_size]))

    patch.setattr(request_module, "extend_chain", extend)


def salt_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(request_module, "chain_root", lambda salt: hashing.chain_root(None))


def hit_without_reference(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(BlockPool, "share", lambda self, blocks: None)


def shared_block_freed(patch: pytest.MonkeyPatch) -> None:
    release = BlockPool.release

    def bug(self: BlockPool, blocks: list[int]) -> None:
        for block in blocks:
            self._refs[block] = min(self._refs[block], 1)
            release(self, [block])

    patch.setattr(BlockPool, "release", bug)


def stale_hash_after_eviction(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(BlockPool, "_evict", lambda self: self._cached.popitem(last=False)[0])


def full_hit_without_the_last_token(patch: pytest.MonkeyPatch) -> None:
    find = KVCache.find_prefix

    def bug(self: KVCache, hashes: list[bytes]) -> tuple[int, list[list[int]]]:
        count, tables = find(self, hashes)
        return (count + 1 if count else 0), tables

    patch.setattr(KVCache, "find_prefix", bug)


def over_budget(patch: pytest.MonkeyPatch) -> None:
    claim = Scheduler._claim
    patch.setattr(
        Scheduler, "_claim", lambda self, request, budget, promised: claim(self, request, budget + 1, promised)
    )


def fork_without_copy(patch: pytest.MonkeyPatch) -> None:
    fork = KVCache.fork

    def bug(
        self: KVCache, tables: list[list[int]], num_computed: int, num_tokens: int
    ) -> tuple[int, list[list[int]], list[tuple[int, int, int]]]:
        count, forked, _ = fork(self, tables, num_computed, num_tokens)
        return count, forked, []

    patch.setattr(KVCache, "fork", bug)


def window_freed_too_early(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        Window,
        "num_stale",
        lambda self, num_computed, block_size: -(-max(0, num_computed - self.size + 1) // block_size),
    )


def state_forked_as_it_is(patch: pytest.MonkeyPatch) -> None:
    fork = KVCache.fork
    patch.setattr(
        KVCache, "fork", lambda self, tables, num_computed, num_tokens: fork(self, tables, num_tokens, num_tokens)
    )


def state_given_back_too_early(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(State, "num_stale", lambda self, num_computed, block_size: num_computed // block_size)


def media_without_names(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(request_module, "extend_chain", lambda *given: hashing.extend_chain(*given[:-1]))


def media_forgotten_too_early(patch: pytest.MonkeyPatch) -> None:
    def bug(self: Encodings) -> None:
        for key in list(self._held)[:-1]:
            del self._held[key]
            self._forgotten.append(key)

    patch.setattr(Encodings, "_make_room", bug)


def media_over_budget(patch: pytest.MonkeyPatch) -> None:
    limit = Encodings.limit
    patch.setattr(Encodings, "limit", lambda self, request, count: max(limit(self, request, count), min(count, 1)))


@pytest.mark.parametrize(
    "seed_bug",
    [
        media_without_names,
        media_forgotten_too_early,
        media_over_budget,
        leak_on_finish,
        hash_without_chain,
        salt_ignored,
        hit_without_reference,
        shared_block_freed,
        stale_hash_after_eviction,
        full_hit_without_the_last_token,
        over_budget,
        fork_without_copy,
        window_freed_too_early,
        state_forked_as_it_is,
        state_given_back_too_early,
    ],
)
def test_the_machine_catches(seed_bug: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    seed_bug(monkeypatch)
    with pytest.raises((AssertionError, KeyError, IndexError, RuntimeError)):
        random_lives()
