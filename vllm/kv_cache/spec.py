"""What memory a layer needs of a sequence, and for how long.

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

    def num_spare(self, num_computed: int, block_size: int) -> int:
        """The number of leading blocks that a sequence of which `num_computed` tokens are computed gives back."""
        return self.num_stale(num_computed, block_size)

    def fills(self, first: int, end: int, block_size: int) -> Sequence[int]:
        """Which of the blocks [first, end) a step that reaches block end - 1 fills, in order; the others stay null."""
        return range(first, end)


@dataclass(frozen=True, slots=True)
class Latent(Full):
    """Attention to one vector of every earlier token: its first `value_dim` elements are the value, all of them the key."""


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
class Chunk(Full):
    """Attention to the earlier tokens of a token's own chunk, and to the `before` chunks before it; chunks are `size` tokens each,
    from the first one on."""

    size: int
    before: int = 0

    def blocks_at_most(self, num_tokens: int, max_step_tokens: int, block_size: int) -> int:
        alive = min(num_tokens, (1 + self.before) * self.size - 1 + max_step_tokens)
        return min(-(-num_tokens // block_size), -(-alive // block_size) + 1)

    def num_stale(self, num_computed: int, block_size: int) -> int:
        return max(0, num_computed // self.size - self.before) * self.size // block_size


@dataclass(frozen=True, slots=True)
class BlockPattern:
    """Which of a sequence's blocks of `size` tokens each head sees: the last `local` up to a token's own, and of those before
    every one whose number leaves the head's phase when it is divided by `stride`."""

    size: int
    local: int
    stride: int
    phases: tuple[int, ...]
    """One per head, below `stride`"""


@dataclass(frozen=True, slots=True)
class Blocks(Full):
    """Attention to some blocks of earlier tokens, others for each head: together they may see all."""

    pattern: BlockPattern


@dataclass(frozen=True, slots=True)
class Scratch(Full):
    """Attention of all of a sequence's tokens to each other, computed in one step: nothing is kept between steps.

    Blocks of such a group belong to the step; the worker gives them out, and no pool knows of them.
    """


@dataclass(frozen=True, slots=True)
class Cross(Full):
    """Attention to what an encoder made of a source of up to `size` tokens.

    Blocks of such a group belong to sources; the worker gives them out as batches say what to encode and what to forget.
    """

    size: int

    def blocks_at_most(self, num_tokens: int, max_step_tokens: int, block_size: int) -> int:
        return -(-self.size // block_size)


@dataclass(frozen=True, slots=True)
class StateTensor:
    """A part of a layer's state; `dtype` is the name of one, such as float32."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class State:
    """All that a recurrent layer remembers of the tokens before, in tensors whose size does not grow.

    A block holds one state: that after the block's last token, or after the sequence's newest one while the block is not
    full.  A token is computed on top of the state before it, so the last block is all that a sequence needs.  It has the one
    before it too, the state at the border: from there a fork goes on whose parent is ahead of it.

        tokens   0 … 3  4 … 7  8 … 11  12 … 15  16 17
        table    null   null   null    border   newest

    A step that crosses many borders leaves states at the last one and at every `interval` tokens, for others to find.
    """

    tensors: tuple[StateTensor, ...]
    interval: int = 512

    def blocks_at_most(self, num_tokens: int, max_step_tokens: int, block_size: int) -> int:
        """The most blocks that one sequence of `num_tokens` holds while it is computed in steps of `max_step_tokens`."""
        total, in_step = -(-num_tokens // block_size), -(-min(num_tokens, max_step_tokens) // block_size)
        return min(total, 4 + -(-in_step // self._every(block_size)))

    def num_stale(self, num_computed: int, block_size: int) -> int:
        """The number of leading blocks that no token from position `num_computed` on will read."""
        return max(0, num_computed - 1) // block_size

    def num_spare(self, num_computed: int, block_size: int) -> int:
        """The number of leading blocks that a sequence of which `num_computed` tokens are computed gives back."""
        return max(0, self.num_stale(num_computed, block_size) - 1)

    def fills(self, first: int, end: int, block_size: int) -> Sequence[int]:
        """Which of the blocks [first, end) a step that reaches block end - 1 fills, in order; the others stay null."""
        every = self._every(block_size)
        at_intervals = range(first + -(first + 1) % every, end - 2, every)
        return [*at_intervals, *range(max(first, end - 2), end)]

    def _every(self, block_size: int) -> int:
        """The interval in blocks."""
        return max(1, self.interval // block_size)


PagedSpec = Full | Window | Chunk | Blocks | Scratch | Cross
"""What attention needs: keys and values of single tokens."""

CacheSpec = PagedSpec | State


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
