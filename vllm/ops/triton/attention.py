"""Paged attention on a GPU: one kernel for any mix of prefill chunks and decodes.

A tile is one sequence's neighbouring tokens times the heads of one KV head's group: the rows of a matrix product.  It
walks over its keys chunk by chunk with a running maximum and sum.  Rows of one token get small tiles, and where there are few of
them their walks are cut into splits that run side by side and are joined afterwards:

    rows of one token     tile = 1 token          grid [rows, KV heads, splits]     then joined
    rows of more          tile = up to 128 rows   grid [tiles, KV heads]

What a step needs (lengths, block tables, tiles) lies in buffers that keep their places, so that a recorded step finds the
next step's there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from vllm.kv_cache.spec import CacheSpec
from vllm.ops.attention import AttentionOptions, Layout
from vllm.ops.attention_torch import PagedCache
from vllm.ops.staging import send

_LARGEST_HEAD = 576
_NO_ROW = -1
_MAX_SPLITS = 32
_LOG2_E = 1.4426950408889634


@dataclass(frozen=True, slots=True)
class _Tiling:
    """Sizes of the kernel's tiles."""

    rows: int
    """M: heads of the group times tokens, a power of 2 of at least 16"""
    keys: int
    """N: keys per chunk"""
    warps: int
    stages: int


class TritonPlan:
    """What the layers of one cache group share in a step."""

    def __init__(self, device: torch.device, max_rows: int, max_tokens: int, max_blocks: int) -> None:
        def buffer(*shape: int, value: int = 0) -> Tensor:
            return torch.full(shape, value, dtype=torch.int32, device=device)

        self.device = device
        self.rows = buffer(3, max_rows)
        """first, start and count of each row; count is 0 where there is none"""
        self.table = buffer(max_rows, max_blocks)
        self.places = buffer(max(max_tokens, max_rows))
        """[T] the place of each token in the cache: block · S + offset; those of no token are in the null block"""
        self.singles = buffer(max_rows, value=_NO_ROW)
        """The rows of one token"""
        self.block_size = 0
        self.replayable = False
        self._tiles: dict[int, Tensor] = {}

    def place(self, layout: Layout) -> None:
        """Bring a step's layout to the device."""
        first, start, count = (part.numpy() for part in (layout.first, layout.start, layout.count))
        self.block_size, self._count = layout.block_size, count
        self.replayable = bool((count == 1).all())
        rows = np.zeros((3, self.rows.shape[1]), dtype=np.int32)
        rows[:, : len(count)] = first, start, count
        send(rows, self.rows)
        table = layout.block_table.numpy()
        send(table, self.table[: table.shape[0], : table.shape[1]])
        owner = np.repeat(np.arange(len(count)), count)
        positions = np.arange(len(owner)) - first[owner] + start[owner]
        places = np.zeros(max(len(owner), rows.shape[1]), dtype=np.int32)
        places[: len(owner)] = table[owner, positions // layout.block_size] * layout.block_size
        places[: len(owner)] += positions.astype(np.int32) % layout.block_size
        send(places, self.places[: len(places)])
        singles = np.full(rows.shape[1], _NO_ROW, dtype=np.int32)
        found = np.flatnonzero(count == 1)
        singles[: len(found)] = found
        send(singles, self.singles)
        self._num_singles = len(found)
        self._tiles.clear()

    def num_singles(self, num_tokens: int) -> int:
        """Return for how many rows of one token to compute; a recorded step computes for as many as it has tokens."""
        return num_tokens if self.replayable else self._num_singles

    def tiles(self, tokens: int) -> Tensor:
        """Return the tiles of up to `tokens` tokens of the longer rows: row and first token in it.  -> [2, N]"""
        if tokens not in self._tiles:
            long = np.flatnonzero(self._count > 1)
            per_row = -(-self._count[long] // tokens)
            owner = np.repeat(long, per_row)
            ends = np.cumsum(per_row)
            index = np.arange(len(owner)) - np.repeat(ends - per_row, per_row)
            # the last tiles of a row see the most keys; they start first
            order = np.argsort(-index, kind="stable")
            found = np.stack((owner[order], index[order] * tokens)).astype(np.int32)
            target = torch.empty(found.shape, dtype=torch.int32, device=self.device)
            send(found, target)
            self._tiles[tokens] = target
        return self._tiles[tokens]


class TritonAttention:
    """The attention backend for GPUs."""

    recordable = True

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._processors = processors(device)

    def refuses(self, spec: CacheSpec, dtype: torch.dtype, block_size: int, quantized: bool = False) -> str | None:
        """Return the reason, in words, why this backend can't serve such a layer; None if it can."""
        if quantized:
            return "attention on a GPU has no int8 cache; use one of the model's dtype"
        if dtype not in (torch.float32, torch.bfloat16, torch.float16):
            return f"attention on a GPU has no cache of {dtype}; use float32, bfloat16 or float16"
        if max(spec.head_dim, spec.value_dim) > _LARGEST_HEAD:
            return f"attention on a GPU takes heads of up to {_LARGEST_HEAD} elements, not {spec.head_dim}"
        return None

    def allocate(
        self, spec: CacheSpec, num_blocks: int, block_size: int, dtype: torch.dtype, quantized: bool = False
    ) -> PagedCache:
        """Return one layer's cache, zeroed."""

        def paged(width: int) -> Tensor:
            return torch.zeros(num_blocks, spec.kv_heads, block_size, width, dtype=dtype, device=self.device)

        return PagedCache(paged(spec.head_dim), paged(spec.value_dim))

    def block_bytes(self, spec: CacheSpec, block_size: int, dtype: torch.dtype, quantized: bool = False) -> int:
        """Return the bytes of a block of one layer's cache."""
        return block_size * spec.kv_heads * (spec.head_dim + spec.value_dim) * dtype.itemsize

    def copy_block(self, cache: PagedCache, source: int, target: int) -> None:
        """Copy one block of one layer's cache."""
        cache.keys[target] = cache.keys[source]
        cache.values[target] = cache.values[source]

    def plan(self, rows: int, tokens: int, blocks: int) -> TritonPlan:
        """Return a plan that has yet to be placed."""
        return TritonPlan(self.device, rows, tokens, blocks)

    def run(
        self, q: Tensor, k: Tensor, v: Tensor, cache: PagedCache, plan: TritonPlan, options: AttentionOptions
    ) -> Tensor:
        """Write k and v into the cache, then attend.  [T, H, E], [T, G, E], [T, G, Ev] -> [T, H, Ev]"""
        write(k, v, cache, plan.places)
        out = torch.empty((*q.shape[:2], cache.values.shape[3]), dtype=q.dtype, device=q.device)
        if num_singles := plan.num_singles(q.shape[0]):
            self._run_singles(q, cache, plan, options, out, num_singles)
        if not plan.replayable:
            self._run_tiles(q, cache, plan, options, out)
        return out

    def _run_singles(
        self, q: Tensor, cache: PagedCache, plan: TritonPlan, options: AttentionOptions, out: Tensor, count: int
    ) -> None:
        kv_heads, width = cache.keys.shape[1], cache.values.shape[3]
        group = q.shape[1] // kv_heads
        tiling = _tiling(group, cache)
        splits = max(1, min(_MAX_SPLITS, 2 * self._processors // (count * kv_heads)))
        if splits == 1:
            _launch((count, kv_heads, 1), q, cache, plan, options, out, plan.singles, plan.singles, tiling, 1, None)
            return
        parts = torch.empty(count, kv_heads, splits, tiling.rows, width + 2, dtype=torch.float32, device=q.device)
        _launch((count, kv_heads, splits), q, cache, plan, options, out, plan.singles, plan.singles, tiling, 1, parts)
        _join[(count, kv_heads * group)](
            parts,
            plan.singles,
            plan.rows,
            options.sinks if options.sinks is not None else parts,
            out,
            *out.stride()[:2],
            GROUP=group,
            M=tiling.rows,
            SPLITS=splits,
            SPLITS_PADDED=triton.next_power_of_2(splits),
            EV=width,
            EV_PADDED=triton.next_power_of_2(width),
            SINKS=options.sinks is not None,
            num_warps=4,
        )

    def _run_tiles(
        self, q: Tensor, cache: PagedCache, plan: TritonPlan, options: AttentionOptions, out: Tensor
    ) -> None:
        kv_heads = cache.keys.shape[1]
        group = q.shape[1] // kv_heads
        tiling = _tiling(128, cache) if group <= 128 else _tiling(group, cache)
        tokens = max(1, tiling.rows // group)
        rows, firsts = plan.tiles(tokens)
        _launch((len(rows), kv_heads, 1), q, cache, plan, options, out, rows, firsts, tiling, tokens, None)


def processors(device: torch.device) -> int:
    """Return how many programs a device runs side by side at the least."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def _tiling(rows: int, cache: PagedCache) -> _Tiling:
    """Return sizes for tiles of about `rows` rows.  Wide heads and wide numbers leave less room for keys."""
    rows = max(16, triton.next_power_of_2(rows))
    width = max(cache.keys.shape[3], cache.values.shape[3]) * cache.keys.dtype.itemsize
    if width > 512:
        return _Tiling(min(rows, 64) if rows > 16 else rows, 16 if width > 1024 else 32, 4, 1)
    if rows <= 16:
        return _Tiling(rows, 64, 4, 3)
    return _Tiling(rows, 64 if width > 128 else 128, 8 if rows >= 128 else 4, 3 if width <= 256 else 2)


def write(k: Tensor, v: Tensor, cache: PagedCache, places: Tensor) -> None:
    """Write each token's keys and values to its place in the cache.  [T, G, E], [T, G, Ev], [T]"""
    num_blocks, kv_heads, block_size, width = cache.keys.shape
    value_width = cache.values.shape[3]
    _write[(k.shape[0],)](
        k,
        v,
        cache.keys,
        cache.values,
        places,
        *k.stride()[:2],
        *v.stride()[:2],
        S=block_size,
        G=kv_heads,
        G_PADDED=triton.next_power_of_2(kv_heads),
        E=width,
        E_PADDED=triton.next_power_of_2(width),
        EV=value_width,
        EV_PADDED=triton.next_power_of_2(value_width),
        num_warps=4,
    )


@triton.jit
def _write(
    k, v, keys, values, places, k_token, k_head, v_token, v_head,
    S: tl.constexpr, G: tl.constexpr, G_PADDED: tl.constexpr,
    E: tl.constexpr, E_PADDED: tl.constexpr, EV: tl.constexpr, EV_PADDED: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    place = tl.load(places + token).to(tl.int64)
    head = tl.arange(0, G_PADDED)[:, None]
    target = (place // S * G + head) * S + place % S
    e = tl.arange(0, E_PADDED)[None, :]
    mask = (head < G) & (e < E)
    tl.store(keys + target * E + e, tl.load(k + token * k_token + head * k_head + e, mask), mask)
    e = tl.arange(0, EV_PADDED)[None, :]
    mask = (head < G) & (e < EV)
    tl.store(values + target * EV + e, tl.load(v + token * v_token + head * v_head + e, mask), mask)


def _launch(
    grid: tuple[int, int, int],
    q: Tensor,
    cache: PagedCache,
    plan: TritonPlan,
    options: AttentionOptions,
    out: Tensor,
    tile_rows: Tensor,
    tile_firsts: Tensor,
    tiling: _Tiling,
    tokens: int,
    parts: Tensor | None,
) -> None:
    """Run the kernel.  The options' tensors that are not there are never read."""
    kv_heads, block_size, width = cache.keys.shape[1:]
    value_width = cache.values.shape[3]
    nothing = plan.rows
    bias, slopes, sinks = options.bias, options.alibi_slopes, options.sinks
    _attend[grid](
        q, cache.keys, cache.values, out, parts if parts is not None else out,
        plan.rows, plan.table, tile_rows, tile_firsts,
        nothing if slopes is None else slopes, nothing if bias is None else bias, nothing if sinks is None else sinks,
        plan.rows.shape[1], plan.table.shape[1],
        options.scale * _LOG2_E, options.softcap * _LOG2_E, options.scale / options.softcap if options.softcap else 0.0,
        *q.stride()[:2], *out.stride()[:2],
        G=kv_heads, GROUP=q.shape[1] // kv_heads, TOKENS=tokens, S=block_size,
        E=width, E_PADDED=triton.next_power_of_2(width), EV=value_width, EV_PADDED=triton.next_power_of_2(value_width),
        M=tiling.rows, N=tiling.keys, WINDOW=options.window or 0, CAUSAL=options.causal,
        SOFTCAP=bool(options.softcap), SLOPES=slopes is not None, BIAS=bias is not None,
        REACH=0 if bias is None else bias.shape[1] // 2, SINKS=sinks is not None and parts is None,
        SPLITS=1 if parts is None else grid[2],
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        num_warps=tiling.warps, num_stages=tiling.stages,
    )  # fmt: skip


@triton.jit
def _attend(
    q, keys, values, out, parts, rows, table, tile_rows, tile_firsts, slopes, bias, sinks,
    max_rows, max_blocks, scale, softcap, inner_scale, q_token, q_head, out_token, out_head,
    G: tl.constexpr, GROUP: tl.constexpr, TOKENS: tl.constexpr, S: tl.constexpr,
    E: tl.constexpr, E_PADDED: tl.constexpr, EV: tl.constexpr, EV_PADDED: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, WINDOW: tl.constexpr, CAUSAL: tl.constexpr,
    SOFTCAP: tl.constexpr, SLOPES: tl.constexpr, BIAS: tl.constexpr, REACH: tl.constexpr, SINKS: tl.constexpr,
    SPLITS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tile, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row = tl.load(tile_rows + tile)
    if row < 0:
        return
    first = tl.load(rows + row).to(tl.int64)
    start, count = tl.load(rows + max_rows + row), tl.load(rows + 2 * max_rows + row)
    offset = tl.load(tile_firsts + tile) if TOKENS > 1 else 0

    index = tl.arange(0, M)
    token = offset + index // GROUP
    head = kv_head * GROUP + index % GROUP
    alive = (index < TOKENS * GROUP) & (token < count)
    position = start + token
    e, ev = tl.arange(0, E_PADDED), tl.arange(0, EV_PADDED)
    place = (first + token)[:, None] * q_token + head[:, None] * q_head + e[None, :]
    queries = tl.load(q + place, alive[:, None] & (e < E)[None, :], 0.0)

    # keys [low, high) are seen by some of the tile's queries, [clear_low, clear_high) by all of them
    last = tl.minimum(offset + TOKENS, count) - 1 + start
    low = 0
    high = start + count
    clear_low = 0
    clear_high = high
    if CAUSAL:
        high = last + 1
        clear_high = start + offset + 1
    if WINDOW > 0:
        low = tl.maximum(0, start + offset - WINDOW + 1)
        clear_low = tl.maximum(0, last - WINDOW + 1)
        if not CAUSAL:
            high = tl.minimum(high, last + WINDOW)
            clear_high = tl.minimum(clear_high, start + offset + WINDOW)
    begin, end = low // N, tl.cdiv(high, N)
    if SPLITS > 1:
        share = tl.cdiv(end - begin, SPLITS)
        begin = begin + split * share
        end = tl.minimum(end, begin + share)

    highest = tl.full([M], -1e30, tl.float32)
    total = tl.zeros([M], tl.float32)
    result = tl.zeros([M, EV_PADDED], tl.float32)
    table_row = table + row.to(tl.int64) * max_blocks
    n = tl.arange(0, N)
    for chunk in tl.range(begin, end):
        key = chunk * N + n
        known = (key >= low) & (key < high)
        block = tl.load(table_row + key // S, known, 0).to(tl.int64)
        where = (block * G + kv_head) * S + key % S
        chunk_keys = tl.load(keys + where[None, :] * E + e[:, None], known[None, :] & (e < E)[:, None], 0.0)
        scores = tl.dot(queries, chunk_keys, input_precision=PRECISION)
        if SOFTCAP:
            inner = scores * inner_scale
            scores = softcap * (1 - 2 / (tl.exp(2 * inner) + 1))
        else:
            scores = scores * scale
        if SLOPES or BIAS:
            behind = position[:, None] - key[None, :]
            if SLOPES:
                slope = tl.load(slopes + head, alive, 0.0)[:, None]
                scores = scores - slope * tl.abs(behind).to(tl.float32) * 1.4426950408889634
            if BIAS:
                column = REACH - tl.minimum(tl.maximum(behind, -REACH), REACH)
                found = tl.load(bias + head[:, None] * (2 * REACH + 1) + column, alive[:, None], 0.0)
                scores = scores + found * 1.4426950408889634
        if (chunk * N < clear_low) | ((chunk + 1) * N > clear_high):
            behind = position[:, None] - key[None, :]
            seen = known[None, :]
            if CAUSAL:
                seen = seen & (behind >= 0)
            if WINDOW > 0:
                seen = seen & (behind < WINDOW)
                if not CAUSAL:
                    seen = seen & (behind > -WINDOW)
            scores = tl.where(seen, scores, float("-inf"))
        peak = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp2(scores - peak[:, None])
        fade = tl.exp2(highest - peak)
        total = total * fade + tl.sum(weights, 1)
        chunk_values = tl.load(values + where[:, None] * EV + ev[None, :], known[:, None] & (ev < EV)[None, :], 0.0)
        result = result * fade[:, None]
        result = tl.dot(weights.to(chunk_values.dtype), chunk_values, result, input_precision=PRECISION)
        highest = peak

    if SPLITS > 1:
        place = ((tile.to(tl.int64) * G + kv_head) * SPLITS + split) * M * (EV + 2)
        place = parts + place + index[:, None] * (EV + 2)
        tl.store(place + ev[None, :], result, (ev < EV)[None, :] & alive[:, None])
        tl.store(place + EV, highest[:, None], alive[:, None])
        tl.store(place + EV + 1, total[:, None], alive[:, None])
    else:
        if SINKS:
            sink = tl.load(sinks + head, alive, 0.0) * 1.4426950408889634
            peak = tl.maximum(highest, sink)
            fade = tl.exp2(highest - peak)
            total = total * fade + tl.exp2(sink - peak)
            result = result * fade[:, None]
        result = result / tl.maximum(total, 1e-30)[:, None]
        place = (first + token)[:, None] * out_token + head[:, None] * out_head + ev[None, :]
        tl.store(out + place, result.to(out.dtype.element_ty), alive[:, None] & (ev < EV)[None, :])


@triton.jit
def _join(
    parts, tile_rows, rows, sinks, out, out_token, out_head,
    GROUP: tl.constexpr, M: tl.constexpr, SPLITS: tl.constexpr, SPLITS_PADDED: tl.constexpr,
    EV: tl.constexpr, EV_PADDED: tl.constexpr, SINKS: tl.constexpr,
):  # fmt: skip
    """Put together what the splits of a walk found."""
    tile, head = tl.program_id(0), tl.program_id(1)
    row = tl.load(tile_rows + tile)
    if row < 0:
        return
    first = tl.load(rows + row).to(tl.int64)
    groups = tl.num_programs(1) // GROUP
    split, ev = tl.arange(0, SPLITS_PADDED), tl.arange(0, EV_PADDED)
    place = (tile.to(tl.int64) * groups + head // GROUP) * SPLITS + split
    place = parts + (place * M + head % GROUP) * (EV + 2)
    highest = tl.load(place + EV, split < SPLITS, -1e30)
    total = tl.load(place + EV + 1, split < SPLITS, 0.0)
    peak = tl.max(highest, 0)
    if SINKS:
        sink = tl.load(sinks + head) * 1.4426950408889634
        peak = tl.maximum(peak, sink)
    fade = tl.exp2(highest - peak)
    whole = tl.sum(total * fade, 0)
    if SINKS:
        whole += tl.exp2(sink - peak)
    found = tl.load(place[:, None] + ev[None, :], (split < SPLITS)[:, None] & (ev < EV)[None, :], 0.0)
    result = tl.sum(found * fade[:, None], 0) / tl.maximum(whole, 1e-30)
    tl.store(out + first * out_token + head * out_head + ev, result.to(out.dtype.element_ty), ev < EV)
