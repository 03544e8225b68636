"""Paged attention in plain torch: the reference, and what runs where nothing faster does.

A layer's cache is K [num_blocks, G, S, E] and V [num_blocks, G, S, Ev].  The queries of a step are cut into tiles of
one sequence's neighbouring tokens; the heads of a KV head's group times the tile's tokens are the rows of one matrix
product.  A tile walks over its keys in chunks at absolute positions, with a running maximum and sum (online softmax):

    keys       0        128       256       384
               ├─────────┼─────────┼─────────┤
    tile a     ███████████████████████░░░░░░░      ░ masked
    tile b               ░░░███████████░░░░░░      (a window: the walk starts at the first visible chunk)

A query meets the same chunks in the same order whatever else is in the step, and a chunk that is masked for it changes
nothing, not a bit.  So the result depends neither on the batch nor on how a prompt was cut into steps.  Where attention
is not causal, every walk goes on to the row's last key, or to the window's other end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vllm.kv_cache.spec import NULL_BLOCK, Latent, PagedSpec
from vllm.ops.attention import AttentionOptions, Layout
from vllm.ops.memory import zeros

_CHUNK = 128
"""Keys per chunk, if the block size divides it."""
_TILE = 64
"""Query tokens per tile, at most."""
_PREFILL_BATCH, _DECODE_BATCH = 4, 16
"""Tiles per matrix product, at most: scores that fit the second-level cache (measured: 25% and 45% less time than 16, 64)."""
_MIN_ROWS = 4
"""Batched float32 products of fewer rows run through kernels that add up in another order (measured on the CPU)."""
_LOWEST = -1e30
"""The running maximum before the first key.  Finite, so that exp(-inf - _LOWEST) is 0 and not NaN."""


@dataclass(frozen=True, slots=True)
class PagedCache:
    """One layer's keys [num_blocks, G, S, E] and values [num_blocks, G, S, Ev], which may be a part of the keys."""

    keys: Tensor
    values: Tensor

    @classmethod
    def zeroed(
        cls, spec: PagedSpec, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> PagedCache:
        """Return the cache of a layer that has seen nothing."""

        def paged(width: int) -> Tensor:
            return zeros(num_blocks, spec.kv_heads, block_size, width, dtype=dtype, device=device)

        keys = paged(spec.head_dim)
        return cls(keys, keys[..., : spec.value_dim] if isinstance(spec, Latent) else paged(spec.value_dim))

    @staticmethod
    def block_bytes(spec: PagedSpec, block_size: int, dtype: torch.dtype) -> int:
        """Return the bytes of a block."""
        width = spec.head_dim + (0 if isinstance(spec, Latent) else spec.value_dim)
        return block_size * spec.kv_heads * width * dtype.itemsize

    def copy_block(self, source: int, target: int) -> None:
        """Copy one block."""
        self.keys[target] = self.keys[source]
        self.values[target] = self.values[source]


@dataclass(frozen=True, slots=True)
class Tiles:
    """N tiles of n slots each; those with the most chunks come first."""

    tokens: Tensor
    """[N, n] the step's token at each slot; slots to spare repeat the tile's last one"""
    positions: Tensor
    """[N, n] its position in its sequence"""
    first_key: Tensor
    """[N] the first key of the tile's first chunk"""
    num_keys: Tensor
    """[N] how many keys the tile's sequence has"""
    tables: Tensor
    """[N, chunks, blocks per chunk]"""
    alive: list[int]
    """How many tiles have a first, second, third … chunk."""
    media: Tensor | None
    """[N, n, 2] positions [first, end) that a token sees beside those before"""
    apart: tuple[Tensor, Tensor] | None
    """[N, n] which tokens take no part in their run, [N, chunks · C] and which keys"""


class TorchPlan:
    """What the layers of one cache group share in a step."""

    form = None
    layout: Layout
    blocks: Tensor
    """[T] the block that each token is written to"""
    offsets: Tensor
    """[T] its place in that block"""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._tilings: dict[tuple[int | None, bool], tuple[list[Tiles], Tensor]] = {}

    def place(self, layout: Layout) -> None:
        """Find the place of every token of the step in the cache."""
        rows = torch.repeat_interleave(torch.arange(len(layout.count)), layout.count)
        tokens = torch.arange(len(rows))
        positions = tokens - layout.first[rows] + layout.start[rows]
        positions = positions.clamp_min(0)  # those before the first are never written
        blocks = layout.block_table[rows, positions // layout.block_size].long()
        self.layout = layout
        self.blocks, self.offsets = blocks.to(self._device), (positions % layout.block_size).to(self._device)
        self._tilings.clear()

    def tiling(self, options: AttentionOptions) -> tuple[list[Tiles], Tensor]:
        """Return the tiles for what is seen, and where in their output each token is; made by the first layer that asks."""
        seen = (options.window, options.causal)
        if seen not in self._tilings:
            self._tilings[seen] = _tile(self.layout, options, self._device)
        return self._tilings[seen]


class TorchAttention:
    """The attention backend that runs on any device."""

    recordable = False

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def refuses(self, spec: PagedSpec, dtype: torch.dtype, block_size: int, quantized: bool = False) -> str | None:
        """Return the reason, in words, why this backend can't serve such a layer; None if it can."""
        if quantized:
            return "the torch attention backend has no int8 cache; use one of the model's dtype"
        if dtype in (torch.float32, torch.bfloat16, torch.float16):
            return None
        return f"the torch attention backend has no cache of {dtype}; use float32, bfloat16 or float16"

    def allocate(
        self, spec: PagedSpec, num_blocks: int, block_size: int, dtype: torch.dtype, quantized: bool = False
    ) -> PagedCache:
        """Return one layer's cache, zeroed."""
        return PagedCache.zeroed(spec, num_blocks, block_size, dtype, self.device)

    def block_bytes(self, spec: PagedSpec, block_size: int, dtype: torch.dtype, quantized: bool = False) -> int:
        """Return the bytes of a block of one layer's cache."""
        return PagedCache.block_bytes(spec, block_size, dtype)

    def copy_block(self, cache: PagedCache, source: int, target: int) -> None:
        """Copy one block of one layer's cache."""
        cache.copy_block(source, target)

    def plan(self, rows: int, tokens: int, blocks: int) -> TorchPlan:
        """Return a plan that has yet to be placed."""
        return TorchPlan(self.device)

    def run(
        self, q: Tensor, k: Tensor, v: Tensor, cache: PagedCache, plan: TorchPlan, options: AttentionOptions
    ) -> Tensor:
        """Write k and v into the cache, then attend.  [T, H, E], [T, G, E], [T, G, Ev] -> [T, H, Ev]"""
        self.write(k, v, cache, plan)
        return _attend_all(q, cache, plan, options)

    def attend(
        self, q: Tensor, spec: PagedSpec, cache: PagedCache, plan: TorchPlan, options: AttentionOptions
    ) -> Tensor:
        """Attend to what is in the cache.  [T, H, E] -> [T, H, Ev]"""
        return _attend_all(q, cache, plan, options)

    def write(self, k: Tensor, v: Tensor, cache: PagedCache, plan: TorchPlan) -> None:
        """Write k and v into the cache.  [T, G, E], [T, G, Ev]"""
        cache.keys[plan.blocks, :, plan.offsets] = k.to(cache.keys.dtype)
        cache.values[plan.blocks, :, plan.offsets] = v.to(cache.values.dtype)


def _attend_all(q: Tensor, cache: PagedCache, plan: TorchPlan, options: AttentionOptions) -> Tensor:
    tilings, places = plan.tiling(options)
    outputs = [_attend(q, cache, tiles, options) for tiles in tilings]
    return torch.cat(outputs)[places].to(q.dtype)


def _attend(q: Tensor, cache: PagedCache, tiles: Tiles, options: AttentionOptions) -> Tensor:
    """Attend for N tiles of n slots.  [T, H, E] -> [N n, H, Ev] float32"""
    num_tiles, slots = tiles.tokens.shape
    kv_heads, group = cache.keys.shape[1], q.shape[1] // cache.keys.shape[1]
    rows = max(_MIN_ROWS, group * slots)  # M; spare ones repeat others' positions
    queries = (q[tiles.tokens].float() * options.scale).unflatten(2, (kv_heads, group)).permute(0, 2, 3, 1, 4)
    queries = F.pad(queries.flatten(2, 3), (0, 0, 0, rows - group * slots))  # [N, G, M, E]
    positions = tiles.positions.repeat(1, -(-rows // slots))[:, :rows]  # [N, M]
    heads = _per_row(torch.arange(q.shape[1], device=q.device), kv_heads, slots, rows)
    highest = queries.new_full(queries.shape[:3], _LOWEST)
    total = torch.zeros_like(highest)
    output = queries.new_zeros((*queries.shape[:3], cache.values.shape[3]))
    for chunk, alive in enumerate(tiles.alive):
        keys, values, behind, visible = _chunk(cache, tiles, chunk, positions[:alive], options)
        scores = _products(queries[:alive], keys.transpose(-1, -2))  # [n, G, M, C]
        if options.softcap:
            scores = options.softcap * torch.tanh(scores / options.softcap)
        if options.alibi_slopes is not None:
            scores = scores - options.alibi_slopes[heads] * behind.abs()
        if options.bias is not None:
            reach = options.bias.shape[1] // 2
            scores = scores + options.bias[heads, reach - behind.clamp(-reach, reach)]
        scores = scores.where(visible, -torch.inf)
        peak = torch.maximum(highest[:alive], scores.amax(-1))
        weights = torch.exp(scores - peak.unsqueeze(-1))
        fade = torch.exp(highest[:alive] - peak)
        total[:alive] = total[:alive] * fade + weights.sum(-1)
        output[:alive] = output[:alive] * fade.unsqueeze(-1) + _products(weights, values)
        highest[:alive] = peak
    if options.sinks is not None:
        sinks = options.sinks[heads[..., 0]]
        peak = torch.maximum(highest, sinks)
        fade = torch.exp(highest - peak)
        total, output = total * fade + torch.exp(sinks - peak), output * fade.unsqueeze(-1)
    output = (output / total.unsqueeze(-1))[:, :, : group * slots].unflatten(2, (group, slots))
    return output.permute(0, 3, 1, 2, 4).reshape(num_tiles * slots, kv_heads * group, -1)


def _per_row(per_head: Tensor, kv_heads: int, slots: int, rows: int) -> Tensor:
    """Repeat what each head has for the rows of a tile.  [H] -> [1, G, M, 1]"""
    repeated = per_head.unflatten(0, (kv_heads, -1)).repeat_interleave(slots, dim=1)
    return F.pad(repeated, (0, rows - repeated.shape[1]))[None, :, :, None]


def _products(a: Tensor, b: Tensor) -> Tensor:
    """Multiply each pair of matrices.  [n, G, M, K], [n, G, K, N] -> [n, G, M, N]

    A lone pair is computed twice: a batch of one runs through kernels that share it out among the threads and add up
    in another order (measured on the CPU with 2 to 16 threads).
    """
    if a.shape[0] * a.shape[1] > 1:
        return a @ b
    return (a.expand(2, -1, -1, -1) @ b.expand(2, -1, -1, -1))[:1]


def _chunk(
    cache: PagedCache, tiles: Tiles, chunk: int, positions: Tensor, options: AttentionOptions
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gather one chunk of the first n tiles, whose queries' positions are [n, M].

    Return keys [n, G, C, E], values [n, G, C, Ev], how far keys are behind queries, and if they see them [n, 1, M, C].
    """
    alive = len(positions)
    table = tiles.tables[:alive, chunk]  # [n, blocks per chunk]
    keys = cache.keys[table].transpose(1, 2).flatten(2, 3).float()
    values = cache.values[table].transpose(1, 2).flatten(2, 3).float()
    size = keys.shape[2]
    key_positions = tiles.first_key[:alive, None] + chunk * size + torch.arange(size, device=keys.device)  # [n, C]
    behind = (positions[:, :, None] - key_positions[:, None]).unsqueeze(1)
    visible = behind >= 0 if options.causal else (key_positions < tiles.num_keys[:alive, None])[:, None, None]
    if options.window is not None:
        visible = visible & (behind.abs() < options.window)
    if tiles.media is not None:
        runs = tiles.media[:alive].repeat(1, -(-behind.shape[2] // tiles.media.shape[1]), 1)[:, : behind.shape[2]]
        keys_at = key_positions[:, None]
        in_run = (keys_at >= runs[..., :1]) & (keys_at < runs[..., 1:])
        if tiles.apart is not None:
            tokens, keys_apart = (part[:alive] for part in tiles.apart)
            tokens = tokens.repeat(1, -(-behind.shape[2] // tokens.shape[1]))[:, : behind.shape[2]]
            in_run = in_run & ~(tokens[..., None] | keys_apart[:, None, chunk * size : (chunk + 1) * size])
        visible = visible | in_run.unsqueeze(1)
    visible = visible.expand_as(behind)
    # memory that no query of the tile may see can hold anything, and 0 · NaN is NaN
    values = values.where(visible.any(2)[..., None], 0.0)
    return keys, values, behind, visible


def _tile(layout: Layout, options: AttentionOptions, device: torch.device) -> tuple[list[Tiles], Tensor]:
    """Cut the step into tiles; return them, and the index of each token in their concatenated output."""
    tilings = [
        *_tiles(layout, options, layout.count == 1, _DECODE_BATCH),
        *_tiles(layout, options, layout.count > 1, _PREFILL_BATCH),
    ]
    tokens = torch.cat([tiles.tokens.flatten() for tiles in tilings])
    places = torch.empty(int(layout.count.sum()), dtype=torch.int64)
    places[tokens] = torch.arange(len(tokens))  # of a token's several slots any will do: they hold the same bits
    return [_move(tiles, device) for tiles in tilings], places.to(device)


def _tiles(layout: Layout, options: AttentionOptions, rows: Tensor, batch: int) -> Iterator[Tiles]:
    """Yield the tiles of the chosen rows ([R] bool), at most `batch` at a time."""
    chunk = layout.block_size * max(1, _CHUNK // layout.block_size)
    per_row = torch.where(rows, -(-layout.count // _TILE), 0)
    row = torch.repeat_interleave(torch.arange(len(rows)), per_row)  # [N]
    if not len(row):
        return
    skipped = (torch.arange(len(row)) - (per_row.cumsum(0) - per_row)[row]) * _TILE
    count = (layout.count[row] - skipped).clamp(max=_TILE)
    first, start = layout.first[row] + skipped, layout.start[row] + skipped
    num_keys = (layout.start + layout.count)[row]
    first_key, end = _seen(start, start + count, num_keys, options)
    media = layout.media if options.causal else None
    if media is not None:
        first_key, end = first_key.minimum(media[first, 0]), end.maximum(media[first + count - 1, 1])
    first_chunk = first_key // chunk
    chunks = -(-end // chunk) - first_chunk
    for index in chunks.argsort(descending=True, stable=True).split(batch):
        slots = torch.arange(int(count[index].max())).minimum(count[index, None] - 1)  # [n, slots]
        most = int(chunks[index[0]])
        blocks = first_chunk[index, None] * (chunk // layout.block_size)
        blocks = blocks + torch.arange(most * (chunk // layout.block_size))
        yield Tiles(
            tokens=first[index, None] + slots,
            positions=start[index, None] + slots,
            first_key=first_chunk[index] * chunk,
            num_keys=num_keys[index],
            tables=_look_up(layout.block_table, row[index], blocks).unflatten(1, (most, -1)),
            alive=(chunks[index] > torch.arange(most)[:, None]).sum(1).tolist(),
            media=None if media is None else media[first[index, None] + slots],
            apart=None
            if media is None
            else _apart(layout, row[index], first[index, None] + slots, first_chunk[index] * chunk, most * chunk),
        )


def _apart(
    layout: Layout, row: Tensor, tokens: Tensor, first_key: Tensor, num_keys: int
) -> tuple[Tensor, Tensor] | None:
    """Return which tokens of N tiles, and which of their keys, take no part in a run.  [N], [N, n], [N] -> [N, n], [N, num_keys]"""
    if layout.apart is None:
        return None
    keys = first_key[:, None] + torch.arange(num_keys) - layout.start[row, None]
    in_step = (keys >= 0) & (keys < layout.count[row, None])
    found = layout.apart[(layout.first[row, None] + keys).clamp(0, len(layout.apart) - 1)].bool()
    return layout.apart[tokens].bool(), found & in_step


def _seen(start: Tensor, end: Tensor, num_keys: Tensor, options: AttentionOptions) -> tuple[Tensor, Tensor]:
    """Return the first key that tiles of tokens [start, end) see, and the first one behind all that they see.  [N] each"""
    if options.window is None:
        return torch.zeros_like(start), end if options.causal else num_keys
    low = (start - options.window + 1).clamp(min=0)
    return low, end if options.causal else (end + options.window - 1).minimum(num_keys)


def _look_up(block_table: Tensor, rows: Tensor, entries: Tensor) -> Tensor:
    """Read entries of the rows' block tables; behind a table's end is the null block.  [R, B], [N], [N, K] -> [N, K]"""
    width = block_table.shape[1]
    found = block_table[rows[:, None], entries.clamp(max=width - 1)].long()
    return found.where(entries < width, NULL_BLOCK)


def _move(tiles: Tiles, device: torch.device) -> Tiles:
    return Tiles(
        tokens=tiles.tokens.to(device),
        positions=tiles.positions.to(device),
        first_key=tiles.first_key.to(device),
        num_keys=tiles.num_keys.to(device),
        tables=tiles.tables.to(device),
        alive=tiles.alive,
        media=None if tiles.media is None else tiles.media.to(device),
        apart=None if tiles.apart is None else (tiles.apart[0].to(device), tiles.apart[1].to(device)),
    )
