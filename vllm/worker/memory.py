"""How much memory weights, activations and cache take, decided before any of it is taken."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
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
    num_seqs: int
    """How many sequences may run at a time."""
    num_tokens: int
    """Tokens of the longest sequences that the cache holds at a time."""
    free: int
    """What was free before any of it was taken."""

    @property
    def num_bytes(self) -> int:
        """All that it may take."""
        return self.weights + self.activations + self.cache

    def __str__(self) -> str:
        if self.cache and not self.num_blocks:
            return f"weights {_size(self.weights)}, the model's own cache {_size(self.cache)} = {self.num_seqs} sequences of {self.num_tokens // self.num_seqs:,} tokens, activations up to {_size(self.activations)}"
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
        return MemoryPlan(weights, activations, 0, (), scheduler.max_num_seqs, 0, free)
    per_sequence = sum(need * each for need, each in zip(needs, block_bytes, strict=True))
    if cache.num_blocks is not None:
        num_blocks = [cache.num_blocks] * len(groups)
    else:
        budget = _budget(cache, weights, activations, free)
        share = min(scheduler.max_num_seqs, budget / per_sequence)
        if share < 1.0:
            fitting = int(share * scheduler.max_model_len) // size * size
            raise ConfigError(_too_little(cache, scheduler, weights, activations, free, per_sequence, fitting))
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
    num_tokens = int(held * scheduler.max_model_len)
    return MemoryPlan(weights, activations, total, tuple(num_blocks), scheduler.max_num_seqs, num_tokens, free)


def plan_own_cache(
    cache: CacheConfig,
    scheduler: SchedulerConfig,
    sequence_bytes: Callable[[int], int],
    weights: int,
    activations: int,
    free: int,
) -> MemoryPlan:
    """Let as many sequences of `max_model_len` run at a time as there is memory for what the model keeps of them by itself.

    `sequence_bytes` says how much that is of so many tokens.  Raises ConfigError, with the arithmetic, when not even one fits,
    and for options of a cache that is made of blocks.
    """
    given = {"num_gpu_blocks_override": cache.num_blocks, "kv_cache_dtype": "int8" if cache.quantized else None}
    for name, value in given.items():
        if value is not None:
            raise ConfigError(
                f"{name}={value!r}: transformers' module computes this model, with a cache of its own; leave it out"
            )
    budget, needed = _budget(cache, weights, activations, free), sequence_bytes(scheduler.max_model_len)
    num_seqs = min(scheduler.max_num_seqs, budget // needed)
    if num_seqs < 1:
        fitting = bisect.bisect_right(range(1, scheduler.max_model_len + 1), budget, key=sequence_bytes)
        raise ConfigError(_too_little(cache, scheduler, weights, activations, free, needed, fitting))
    total = num_seqs * needed
    if (cache.memory_bytes, cache.free_bytes) != (None, None) and weights + total + activations > free:
        raise ConfigError(_too_much(cache, weights, total, activations, free))
    return MemoryPlan(weights, activations, total, (), num_seqs, num_seqs * scheduler.max_model_len, free)


def _budget(cache: CacheConfig, weights: int, activations: int, free: int) -> int:
    """Return the bytes that the cache may have, at least 0."""
    if cache.memory_bytes is not None:
        return cache.memory_bytes
    shared = free if cache.free_bytes is None else cache.free_bytes
    return max(0, int(shared * cache.memory_share) - weights - activations)


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
    cache: CacheConfig, scheduler: SchedulerConfig, weights: int, activations: int, free: int, needed: int, fitting: int
) -> str:
    """Say that one sequence needs more than there is; one of `fitting` tokens would not."""
    shared = free if cache.free_bytes is None else cache.free_bytes
    wanted = f"one sequence of max_model_len={scheduler.max_model_len} needs {_size(needed)} of KV cache"
    shorter = f"lower max_model_len to {fitting} or less" if fitting else "use a smaller model or dtype"
    if cache.memory_bytes is not None:
        return f"not enough memory: {wanted}, but kv_cache_memory_bytes gives {_size(cache.memory_bytes)}; {shorter}, or raise it"
    return (
        f"not enough memory: {wanted}, but of {_size(shared)} free x gpu_memory_utilization={cache.memory_share} "
        f"- {_size(weights)} weights - {_size(activations)} activations, {_size(_budget(cache, weights, activations, free))} are left; "
        f"{shorter}, or raise gpu_memory_utilization"
    )


def _size(count: int) -> str:
    return f"{count / GIB:.2f} GiB" if count >= GIB / 10 else f"{count / 2**20:.1f} MiB"
