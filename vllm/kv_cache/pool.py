"""The blocks of one cache group: who holds them, and what the free ones still contain.

A block is in exactly one of three states:

    in use       its reference count is the number of tables that hold it
    cached-free  nobody holds it, but its hash still finds its content; the least recently released is evicted first
    free         nobody holds it and nothing is known of its content

Block 0 is the null block: always there, never given out, never freed.
"""

from __future__ import annotations

import itertools
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Sequence

from vllm.kv_cache.spec import NULL_BLOCK


class BlockPool:
    """Blocks 1 … num_blocks - 1, beside the null block."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free: deque[int] = deque(range(1, num_blocks))
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._refs = [0] * num_blocks
        self._hash_of: list[bytes | None] = [None] * num_blocks
        self._block_of: dict[bytes, int] = {}

    @property
    def num_usable(self) -> int:
        """All blocks but the null block."""
        return self.num_blocks - 1

    @property
    def num_free(self) -> int:
        """Blocks that `take` can give, cached-free ones included."""
        return len(self._free) + len(self._cached)

    def take(self, count: int) -> list[int]:
        """Give out `count` blocks, each with one reference.  The caller has checked `num_free`."""
        assert count <= self.num_free, f"take({count}) with {self.num_free} free blocks"
        blocks = [self._free.popleft() if self._free else self._evict() for _ in range(count)]
        for block in blocks:
            self._refs[block] = 1
        return blocks

    def share(self, blocks: Iterable[int]) -> None:
        """Add a reference to each block; null blocks are passed over."""
        for block in blocks:
            if block == NULL_BLOCK:
                continue
            if self._refs[block] == 0:
                del self._cached[block]  # KeyError: the block was free, its content unknown
            self._refs[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """Drop a reference of each block; null blocks are passed over.

        Cached blocks are evicted in the order of their release: release the ones that are worth least first.
        """
        for block in blocks:
            if block == NULL_BLOCK:
                continue
            assert self._refs[block] > 0, f"block {block} released more often than it was taken"
            self._refs[block] -= 1
            if self._refs[block] == 0:
                if self._hash_of[block] is None:
                    self._free.append(block)
                else:
                    self._cached[block] = None

    def find(self, block_hash: bytes) -> int | None:
        """Return the block with this content, in use or cached-free."""
        return self._block_of.get(block_hash)

    def register(self, block: int, block_hash: bytes) -> None:
        """Name the content of a full block in use.  The first block of a content keeps the name."""
        assert self._refs[block] > 0, f"block {block} is not in use"
        if self._hash_of[block] is None and block_hash not in self._block_of:
            self._hash_of[block] = block_hash
            self._block_of[block_hash] = block

    def num_exclusive(self, table: Sequence[int]) -> int:
        """The number of blocks at the end of a table, back to its null blocks, that no other table holds."""
        alive = itertools.takewhile(NULL_BLOCK.__ne__, reversed(table))
        return sum(self._refs[block] == 1 for block in alive)

    def forget(self) -> None:
        """Forget the content of every block; blocks in use stay in use."""
        self._free.extend(self._cached)
        self._cached.clear()
        self._block_of.clear()
        self._hash_of = [None] * self.num_blocks

    def check(self, tables: Iterable[list[int]]) -> None:
        """Assert the invariants, given every table that holds blocks of this pool."""
        held: Counter[int] = Counter()
        for table in tables:
            real = [block for block in table if block != NULL_BLOCK]
            assert len(real) == len(set(real)), f"a block stands twice in one table: {table}"
            held.update(real)
        for block in range(self.num_blocks):
            assert self._refs[block] == held[block], (
                f"block {block}: {self._refs[block]} references, {held[block]} holders"
            )
        free, cached = set(self._free), set(self._cached)
        in_use = {block for block in range(1, self.num_blocks) if self._refs[block]}
        assert len(free) == len(self._free), "a block stands twice in the free list"
        assert not (free & cached or free & in_use or cached & in_use), "a block is in two states"
        assert free | cached | in_use == set(range(1, self.num_blocks)), "a block is in no state"
        named = {block: name for block, name in enumerate(self._hash_of) if name is not None}
        assert {name: block for block, name in named.items()} == self._block_of, "hashes and blocks disagree"
        assert len(named) == len(self._block_of), "two blocks share a hash"
        assert not free & set(named), "a free block still has a hash"
        assert cached <= set(named), "a cached-free block has no hash"

    def _evict(self) -> int:
        block, _ = self._cached.popitem(last=False)
        name = self._hash_of[block]
        assert name is not None
        del self._block_of[name]
        self._hash_of[block] = None
        return block
