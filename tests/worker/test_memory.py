"""The memory plan: what is asked for if there is room, as much as there is otherwise, or an error with the arithmetic."""

from __future__ import annotations

from typing import Any

import pytest

from vllm.config import CacheConfig, SchedulerConfig
from vllm.errors import ConfigError
from vllm.kv_cache.spec import CacheGroup, Full, Window
from vllm.worker.memory import MemoryPlan, plan_memory

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
