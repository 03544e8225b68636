"""The cache as the scheduler sees it: one block table per cache group and sequence, over one pool per group.

tables[g][b] is the block that holds tokens [b * block_size, (b + 1) * block_size) in group g
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vllm.kv_cache.pool import BlockPool
from vllm.kv_cache.spec import NULL_BLOCK, CacheGroup, State

Tables = list[list[int]]


class KVCache:
    """Takes, shares and releases blocks over all cache groups at once; without a group there is nothing to take."""

    def __init__(
        self,
        groups: Sequence[CacheGroup],
        num_blocks: Sequence[int],
        block_size: int,
        max_step_tokens: int,
        prefix_caching: bool,
    ) -> None:
        self.specs = [group.spec for group in groups]
        self.pools = [BlockPool(count) for count in num_blocks]
        self.block_size = block_size
        self.max_step_tokens = max_step_tokens
        self.prefix_caching = prefix_caching and bool(self.pools)

    def new_tables(self) -> Tables:
        return [[] for _ in self.pools]

    def fits(self, num_tokens: int) -> bool:
        """Whether one sequence of this length could be computed if it had the cache for itself."""
        return all(need <= pool.num_usable for need, pool in zip(self.needs(num_tokens), self.pools, strict=True))

    def needs(self, num_tokens: int) -> list[int]:
        """The most blocks, per group, that a sequence of this length holds at a time."""
        return [spec.blocks_at_most(num_tokens, self.max_step_tokens, self.block_size) for spec in self.specs]

    def lacks(self, tables: Tables, num_tokens: int) -> list[int]:
        """The most blocks, per group, that a sequence with these tables still takes until it has `num_tokens`.

        The blocks that it holds alone come back as its window moves on, and are not needed twice.
        """
        total = -(-num_tokens // self.block_size)
        lacks = []
        for need, pool, table in zip(self.needs(num_tokens), self.pools, tables, strict=True):
            missing = max(0, total - len(table))
            if missing and need < total:  # a window; only then is the walk over the table worth it
                missing = max(0, min(missing, need - pool.num_exclusive(table)))
            lacks.append(missing)
        return lacks

    @property
    def usage(self) -> float:
        """The share of blocks that sequences hold, in the pool that has the fewest left."""
        return max((1 - pool.num_free / pool.num_usable for pool in self.pools), default=0.0)

    def free(self) -> list[int]:
        return [pool.num_free for pool in self.pools]

    def extend(self, tables: Tables, num_tokens: int) -> bool:
        """Take the blocks that `tables` lack for `num_tokens`.  False, and nothing is taken: a pool has too few."""
        total = -(-num_tokens // self.block_size)
        if all(len(table) >= total for table in tables):
            return True
        filled = [
            spec.fills(len(table), total, self.block_size) for spec, table in zip(self.specs, tables, strict=True)
        ]
        if any(len(indices) > pool.num_free for indices, pool in zip(filled, self.pools, strict=True)):
            return False
        for table, indices, pool in zip(tables, filled, self.pools, strict=True):
            table.extend([NULL_BLOCK] * (total - len(table)))
            for index, block in zip(indices, pool.take(len(indices)), strict=True):
                table[index] = block
        return True

    def trim(self, tables: Tables, num_trimmed: int, num_computed: int) -> int:
        """Release what a sequence no longer needs that had all it needed at `num_trimmed` tokens; return `num_computed`."""
        for spec, pool, table in zip(self.specs, self.pools, tables, strict=True):
            first = spec.num_spare(num_trimmed, self.block_size)
            end = min(spec.num_spare(num_computed, self.block_size), len(table))
            if first < end:
                pool.release(table[first:end])
                table[first:end] = [NULL_BLOCK] * (end - first)
        return num_computed

    def release(self, tables: Tables) -> None:
        """Give everything back; a sequence's last blocks are the first to be evicted."""
        for pool, table in zip(self.pools, tables, strict=True):
            pool.release(reversed(table))
            table.clear()

    def find_prefix(self, hashes: Sequence[bytes]) -> tuple[int, Tables]:
        """Return the longest cached prefix, in tokens, and its tables, with a reference to each block.

        Full attention needs every block of it; a window only those that the next token can see, a state only the last.
        """
        for count in range(self._longest(hashes), 0, -1):
            tables = self._tables_of(hashes, count)
            if tables is not None:
                for pool, table in zip(self.pools, tables, strict=True):
                    pool.share(table)
                return count * self.block_size, tables
        return 0, self.new_tables()

    def register(self, tables: Tables, hashes: Sequence[bytes], first: int) -> None:
        """Name the full blocks [first, len(hashes)) of a sequence, so that others find them."""
        for pool, table in zip(self.pools, tables, strict=True):
            for index in range(first, len(hashes)):
                if table[index] != NULL_BLOCK:
                    pool.register(table[index], hashes[index])

    def fork(
        self, tables: Tables, num_computed: int, num_tokens: int
    ) -> tuple[int, Tables, list[tuple[int, int, int]]]:
        """Share the first `num_tokens` of a sequence, of which `num_computed` are computed, with a new one.

        Whole blocks are shared; a partial one is copied.  Returns how many tokens the fork has, its tables, and the
        copies (group, source, target) that must be made before either writes.  When a pool has no block for the copy,
        or a state is ahead of the fork, the fork starts at the end of the whole blocks and has the rest computed again;
        if the sequence no longer has what it would see, it starts with nothing.
        """
        whole, partial = divmod(num_tokens, self.block_size)
        is_ahead = num_tokens < num_computed and any(isinstance(spec, State) for spec in self.specs)
        if partial and (is_ahead or not all(pool.num_free for pool in self.pools)):
            num_tokens, partial = whole * self.block_size, 0
        if not self._can_resume(tables, num_tokens):
            return 0, self.new_tables(), []
        copies, forked = [], []
        for group, (pool, table) in enumerate(zip(self.pools, tables, strict=True)):
            shared = table[:whole]
            pool.share(shared)
            if partial:
                (target,) = pool.take(1)
                copies.append((group, table[whole], target))
                shared = [*shared, target]
            forked.append(shared)
        return num_tokens, forked, copies

    def check(self, tables: Iterable[Tables]) -> None:
        """Assert every pool's invariants, given the tables of all sequences that hold blocks."""
        alive = list(tables)
        for group, pool in enumerate(self.pools):
            pool.check([table[group] for table in alive])

    def reset(self) -> None:
        """Forget all cached prefixes."""
        for pool in self.pools:
            pool.forget()

    def _can_resume(self, tables: Tables, num_tokens: int) -> bool:
        """Whether tables still hold what the tokens from position `num_tokens` on will read."""
        last = -(-num_tokens // self.block_size)
        first = [spec.num_stale(num_tokens, self.block_size) for spec in self.specs]
        return all(NULL_BLOCK not in table[stale:last] for stale, table in zip(first, tables, strict=True))

    def _longest(self, hashes: Sequence[bytes]) -> int:
        """The number of leading blocks that every full-attention group has."""
        longest = len(hashes)
        for spec, pool in zip(self.specs, self.pools, strict=True):
            if spec.num_stale(len(hashes) * self.block_size, self.block_size) == 0:
                found = next((i for i in range(longest) if pool.find(hashes[i]) is None), longest)
                longest = min(longest, found)
        return longest

    def _tables_of(self, hashes: Sequence[bytes], count: int) -> Tables | None:
        """The tables of a prefix of exactly `count` blocks, or None when a block that is needed is gone."""
        num_tokens, tables = count * self.block_size, []
        for spec, pool in zip(self.specs, self.pools, strict=True):
            first = spec.num_stale(num_tokens, self.block_size)
            found = [pool.find(name) for name in hashes[first:count]]
            if None in found:
                return None
            tables.append([NULL_BLOCK] * first + [block for block in found if block is not None])
        return tables
