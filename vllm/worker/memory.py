"""How much memory weights, activations and cache take, decided before any of it is taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vllm.config import CacheConfig, SchedulerConfig
from vllm.errors import ConfigError
from vllm.kv_cache.spec import CacheGroup

GIB = 2**30


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes, and the cache they buy."""

    weights: int
    activations: int
    cache: int
    num_blocks: tuple[int, ...]
    """Per cache group, the null block included."""
    num_tokens: int
    """Tokens of the longest sequences that the cache holds at a time."""
    free: int
    """What was free before any of it was taken."""

    @property
    def num_bytes(self) -> int:
        """All that it may take."""
        return self.weights + self.activations + self.cache

    def __str__(self) -> str:
        if not self.num_blocks:
            return f"weights {_size(self.weights)}, activations up to {_size(self.activations)}"
        return f"weights {_size(self.weights)}, KV cache {_size(self.cache)} = {self.num_tokens:,} tokens, activations up to {_size(self.activations)}"


def plan_memory(
    groups: Sequence[CacheGroup],
    cache: CacheConfig,
    scheduler: SchedulerConfig,
    block_bytes: Sequence[int],
    weights: int,
    activations: int,
    free: int,
) -> MemoryPlan:
    """Give the cache what `max_num_seqs` sequences of `max_model_len` need, if the memory that is free has it.

    `block_bytes` are those of a block over all layers of each group; `weights`, `activations` and `free` are bytes, too.  Raises ConfigError, with the arithmetic, when not even one sequence
    fits, or when a cache of a given size, or of a share of a given size, is more than is free.
    """
    size = cache.block_size
    needs = [
        group.spec.blocks_at_most(scheduler.max_model_len, scheduler.max_num_batched_tokens, size) for group in groups
    ]
    if not groups:  # nothing is kept between steps
        if weights + activations > free:
            raise ConfigError(
                f"not enough memory: {_size(weights)} weights + {_size(activations)} activations are more than the "
                f"{_size(free)} that are free; lower max_model_len or max_num_batched_tokens, or use a smaller model"
            )
        return MemoryPlan(weights, activations, 0, (), 0, free)
    per_sequence = sum(need * each for need, each in zip(needs, block_bytes, strict=True))
    if cache.num_blocks is not None:
        num_blocks = [cache.num_blocks] * len(groups)
    else:
        shared = free if cache.free_bytes is None else cache.free_bytes
        budget = int(shared * cache.memory_share) - weights - activations
        if cache.memory_bytes is not None:
            budget = cache.memory_bytes
        share = min(scheduler.max_num_seqs, max(0, budget) / per_sequence)
        if share < 1.0:
            raise ConfigError(_too_little(cache, scheduler, weights, activations, shared, budget, per_sequence))
        num_blocks = [int(need * share) + 1 for need in needs]
    if short := [need + 1 for need, count in zip(needs, num_blocks, strict=True) if need >= count]:
        raise ConfigError(
            f"num_gpu_blocks_override={cache.num_blocks} is too few for one sequence of max_model_len={scheduler.max_model_len}: it needs {max(short)} blocks; raise it or lower max_model_len"
        )
    total = sum(count * each for count, each in zip(num_blocks, block_bytes, strict=True))
    is_given = (cache.num_blocks, cache.memory_bytes, cache.free_bytes) != (None, None, None)
    if is_given and weights + total + activations > free:
        raise ConfigError(_too_much(cache, weights, total, activations, free))
    held = min((count - 1) / need for count, need in zip(num_blocks, needs, strict=True))
    return MemoryPlan(weights, activations, total, tuple(num_blocks), int(held * scheduler.max_model_len), free)


def _too_much(cache: CacheConfig, weights: int, total: int, activations: int, free: int) -> str:
    """Say that a cache of the size that was given is more than is free."""
    given = "gpu_memory_utilization"
    if cache.num_blocks is not None:
        given = "num_gpu_blocks_override"
    elif cache.memory_bytes is not None:
        given = "kv_cache_memory_bytes"
    return (
        f"not enough memory: {_size(weights)} weights + {_size(total)} KV cache + {_size(activations)} activations "
        f"are more than the {_size(free)} that are free; lower {given}, or use a smaller model"
    )


def _too_little(
    cache: CacheConfig, scheduler: SchedulerConfig, weights: int, activations: int, free: int, budget: int, needed: int
) -> str:
    wanted = f"one sequence of max_model_len={scheduler.max_model_len} needs {_size(needed)} of KV cache"
    fitting = int(max(0, budget) / needed * scheduler.max_model_len) // cache.block_size * cache.block_size
    shorter = f"lower max_model_len to {fitting} or less" if fitting else "use a smaller model or dtype"
    if cache.memory_bytes is not None:
        return f"not enough memory: {wanted}, but kv_cache_memory_bytes gives {_size(cache.memory_bytes)}; {shorter}, or raise it"
    return (
        f"not enough memory: {wanted}, but of {_size(free)} free x gpu_memory_utilization={cache.memory_share} "
        f"- {_size(weights)} weights - {_size(activations)} activations, {_size(max(0, budget))} are left; "
        f"{shorter}, or raise gpu_memory_utilization"
    )


def _size(count: int) -> str:
    return f"{count / GIB:.2f} GiB" if count >= GIB / 10 else f"{count / 2**20:.1f} MiB"
