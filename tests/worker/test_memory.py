"""The memory plan: what is asked for if there is room, as much as there is otherwise, or an error with the arithmetic."""

from __future__ import annotations

from typing import Any

import pytest

from vllm.config import CacheConfig, SchedulerConfig
from vllm.errors import ConfigError
from vllm.kv_cache.spec import CacheGroup, Full, Window
from vllm.worker.memory import MemoryPlan, plan_memory, plan_own_cache

FULL = CacheGroup(Full(kv_heads=2, head_dim=8, value_dim=8), (0, 1))  # 16 tokens of float32: 4 KiB
BLOCK = 2 * 16 * 2 * (8 + 8) * 4  # bytes of a block of FULL
SCHEDULER = SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=64, max_model_len=160)


def plan(free: int, groups: tuple[CacheGroup, ...] = (FULL,), **given: Any) -> MemoryPlan:
    sizes = {"memory_share": 0.5, "memory_bytes": None, "num_blocks": None, **given}
    cache = CacheConfig(block_size=16, quantized=False, prefix_caching=True, **sizes)
    block_bytes = [BLOCK * len(group.layers) // 2 for group in groups]
    return plan_memory(groups, cache, SCHEDULER, block_bytes, weights=1000, activations=24, free=free)


def test_the_cache_is_what_all_sequences_need_and_not_more() -> None:
    found = plan(1 << 30)
    assert found.num_blocks == (4 * 10 + 1,)  # the null block included
    assert (found.cache, found.num_tokens) == (41 * BLOCK, 4 * 160)


def test_the_cache_is_what_the_share_of_free_memory_leaves() -> None:
    room = 25 * BLOCK + 1024
    assert plan(2 * room).num_blocks == (26,)
    assert plan(room, memory_share=1.0).num_blocks == (26,)


def test_the_share_may_be_one_of_memory_that_others_hold_a_part_of_meanwhile() -> None:
    room = 25 * BLOCK + 1024
    assert plan(2 * room - 5 * BLOCK, free_bytes=2 * room).num_blocks == plan(2 * room).num_blocks
    with pytest.raises(ConfigError, match="are more than the .* that are free; lower gpu_memory_utilization"):
        plan(room - 5 * BLOCK, free_bytes=2 * room)


def test_groups_share_the_memory_in_proportion_to_their_needs() -> None:
    window = CacheGroup(Window(kv_heads=2, head_dim=8, value_dim=8, size=17), (2,))
    found = plan(1 << 30, (FULL, window))
    assert found.num_blocks == (41, 4 * 6 + 1)


@pytest.mark.parametrize(
    ("free", "given", "message"),
    [
        (
            81920,
            {},
            "one sequence of max_model_len=160 needs 0.0 MiB .* x gpu_memory_utilization=0.5 .* lower max_model",
        ),
        (1 << 30, {"memory_bytes": 100}, "but kv_cache_memory_bytes gives"),
        (1 << 30, {"num_blocks": 10}, "num_gpu_blocks_override=10 is too few .* it needs 11 blocks"),
        (100_000, {"memory_bytes": 1 << 30}, "are more than the 0.1 MiB that are free; lower kv_cache_memory_bytes"),
        (
            1 << 20,
            {"num_blocks": 9999},
            "39.1 MiB KV cache .* the 1.0 MiB that are free; lower num_gpu_blocks_override",
        ),
    ],
)
def test_too_little_memory_is_refused_with_the_arithmetic(free: int, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(free, **given)


def own(free: int, sequence_bytes: int = 1000, **given: Any) -> MemoryPlan:
    """A plan for a model that keeps 1000 bytes of a sequence, and as many of each of its tokens."""
    sizes = {"memory_share": 0.5, "memory_bytes": None, "num_blocks": None, "quantized": False, **given}
    cache = CacheConfig(block_size=16, prefix_caching=True, **sizes)
    return plan_own_cache(cache, SCHEDULER, lambda count: sequence_bytes * (1 + count), 1000, 24, free)


@pytest.mark.parametrize(("sequences", "expected"), [(1, 1), (3.9, 3), (100, 4)])
def test_as_many_sequences_run_as_there_is_memory_for_what_a_model_keeps_of_them(
    sequences: float, expected: int
) -> None:
    found = own(int(2 * (1024 + sequences * 161_000)))
    assert (found.num_seqs, found.num_tokens, found.cache) == (expected, expected * 160, expected * 161_000)
    assert own(1 << 30, memory_bytes=int(sequences * 161_000)).num_seqs == expected
    assert f"the model's own cache {found.cache / 2**20:.1f} MiB = {expected} sequences of 160 tokens" in str(found)


@pytest.mark.parametrize(
    ("free", "given", "message"),
    [
        (2 * (1024 + 160_999), {}, "max_model_len=160 needs 0.2 MiB .* lower max_model_len to 159 or less"),
        (2 * 1024, {}, "use a smaller model or dtype"),
        (1 << 30, {"memory_bytes": 41_500}, "gives 0.0 MiB; lower max_model_len to 40 or less"),
        (400_000, {"memory_bytes": 640_000}, "are more than the 0.4 MiB that are free; lower kv_cache_memory_bytes"),
        (1 << 30, {"num_blocks": 8}, "num_gpu_blocks_override=8: transformers' module"),
        (1 << 30, {"quantized": True}, "kv_cache_dtype='int8': transformers' module"),
    ],
)
def test_what_a_model_cannot_keep_is_refused_with_the_arithmetic(
    free: int, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        own(free, **given)
