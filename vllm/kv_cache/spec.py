"""What memory a layer's attention needs, and for how long.

A layer says what it needs with a spec; layers with equal specs form a cache group and share one set of block tables.
Block 0 of every group is the null block: tables point at it where a sequence no longer needs its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

NULL_BLOCK = 0


@dataclass(frozen=True, slots=True)
class Full:
    """Attention to every earlier token."""

    kv_heads: int
    head_dim: int
    value_dim: int  # head_dim of the values; equal to head_dim almost everywhere

    def blocks_at_most(self, num_tokens: int, max_step_tokens: int, block_size: int) -> int:
        """The most blocks that one sequence of `num_tokens` holds while it is computed in steps of `max_step_tokens`."""
        return -(-num_tokens // block_size)

    def num_stale(self, num_computed: int, block_size: int) -> int:
        """The number of leading blocks that no token from position `num_computed` on will read."""
        return 0


@dataclass(frozen=True, slots=True)
class Window(Full):
    """Attention to the last `size` tokens, the token itself included."""

    size: int

    def blocks_at_most(self, num_tokens: int, max_step_tokens: int, block_size: int) -> int:
        alive = min(num_tokens, self.size - 1 + max_step_tokens)
        return min(-(-num_tokens // block_size), -(-alive // block_size) + 1)

    def num_stale(self, num_computed: int, block_size: int) -> int:
        return max(0, num_computed - self.size + 1) // block_size


@dataclass(frozen=True, slots=True)
class Scratch(Full):
    """Attention of all of a sequence's tokens to each other, computed in one step: nothing is kept between steps.

    Blocks of such a group belong to the step; the worker gives them out, and no pool knows of them.
    """


CacheSpec = Full | Window | Scratch


@dataclass(frozen=True, slots=True)
class CacheGroup:
    """Layers (by their index in call order) whose caches have the same spec, hence the same block tables."""

    spec: CacheSpec
    layers: tuple[int, ...]


def group_layers(specs: Sequence[CacheSpec]) -> tuple[CacheGroup, ...]:
    """Collect the layers' specs into groups, in order of first appearance."""
    members: dict[CacheSpec, list[int]] = {}
    for layer, spec in enumerate(specs):
        members.setdefault(spec, []).append(layer)
    return tuple(CacheGroup(spec, tuple(layers)) for spec, layers in members.items())
