"""Paged attention on a GPU: one kernel for any mix of prefill chunks and decodes.

A tile is one sequence's neighbouring tokens times the heads of one KV head's group: the rows of a matrix product.  It
walks over its keys chunk by chunk with a running maximum and sum.  Rows of one token get small tiles, and where there are few of
them their walks are cut into splits that run side by side and are joined afterwards:

    rows of one token     tile = 1 token          grid [rows, KV heads, splits]     then joined
    rows of more          tile = up to 128 rows   grid [tiles, KV heads]

In a step of such rows alone, who attends for a token also writes its keys and values.

What a step needs (lengths, block tables, tiles) lies in buffers that keep their places, so that a recorded step finds the
next step's there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import triton
from torch import Tensor

from vllm.kv_cache.spec import PagedSpec
from vllm.ops.attention import MOST_RECORDED, AttentionOptions, Form, Layout
from vllm.ops.attention_torch import PagedCache
from vllm.ops.staging import send, sent
from vllm.ops.triton.attention_kernels import attend_kernel, join_kernel, write_kernel
from vllm.ops.triton.early import early

_LARGEST_HEAD = 576
_NOTHING = -1
_MOST_LONG_ROWS = 32
_LONGEST_WALK = 4096
"""Of the longer rows, and of the keys of a single token, in a step that is recorded."""
_MAX_SPLITS = 32
_WALKS = 3
"""Walks side by side that a processor is given before they are no longer split: fewer leave the memory idle."""
_LOG2_E = 1.4426950408889634


Qkv = tuple[Tensor, Tensor | None, Tensor | None]
"""Without keys and values nothing is written."""


@dataclass(frozen=True, slots=True)
class _Tiling:
    """Sizes of the kernel's tiles."""

    group: int
    """Heads that share keys"""
    rows: int
    """M: heads of the group times tokens, a power of 2 of at least 16"""
    keys: int
    """N: keys per chunk"""
    warps: int
    stages: int

    @property
    def cuts(self) -> int:
        """How many tiles the heads of a group take."""
        return -(-self.group // self.rows)

    @property
    def heads(self) -> int:
        """How many of the group's heads are in a tile."""
        return -(-self.group // self.cuts)

    @property
    def tokens(self) -> int:
        """How many tokens are in a tile of a longer row."""
        return self.rows // self.heads


class TritonPlan:
    """What the layers of one cache group share in a step.

    In one buffer, so that it takes one copy: the width W of the block table; first, start and count of each row, count being 0
    where there is none; the rows of one token; the block table [R, W].  `places` [T] are where tokens are written, block · S +
    offset, where the attention kernel doesn't see to that itself.  What follows a step's places, rows of one token and tiles is
    marked as nothing, as far as a recorded step may read.
    """

    def __init__(self, device: torch.device, max_rows: int, max_tokens: int, max_blocks: int) -> None:
        self.device = device
        self.max_rows = max_rows
        self._buffer = torch.zeros(1 + (4 + max_blocks) * max_rows, dtype=torch.int32, device=device)
        self.width, self.rows, self.singles, self.table = self._buffer.split(
            (1, 3 * max_rows, max_rows, max_rows * max_blocks)
        )
        self.places = torch.zeros(max_tokens, dtype=torch.int32, device=device)
        self.block_size = 0
        self.form: Form | None = None
        self.media: Tensor | None = None
        """[T, 3] the run that each token sees beside those it sees anyway, and whether none before it sees it"""
        self._tiles: dict[int, Tensor] = {}
        self._kept_tiles: dict[int, Tensor] = {}

    def place(self, layout: Layout) -> None:
        """Bring a step's layout to the device."""
        first, start, count = (part.numpy() for part in (layout.first, layout.start, layout.count))
        table, most = layout.block_table.numpy(), self.max_rows
        singles = np.flatnonzero(count == 1)
        values = np.zeros(1 + 4 * most + table.size, dtype=np.int32)
        values[0] = table.shape[1]
        for index, part in enumerate((first, start, count)):
            values[1 + index * most :][: len(part)] = part
        values[1 + 3 * most :][:most] = _NOTHING
        values[1 + 3 * most :][: len(singles)] = singles
        values[1 + 4 * most :] = table.ravel()
        send(values, self._buffer[: len(values)])
        self.block_size, self._count, self._start = layout.block_size, count, start
        self._num_singles = len(singles)
        self.media = None if layout.media is None else sent(_runs(layout, layout.media), self.device)
        self.form = self._form()
        self._layout = layout
        self._tiles.clear()
        if self.form is not Form.SINGLES:
            self._find_places()
        if self.form is Form.MIXED:
            for tokens, kept in self._kept_tiles.items():
                self._keep(tokens, kept)

    def _form(self) -> Form | None:
        if self.media is not None:
            return None
        num_long = len(self._count) - self._num_singles
        if num_long == 0:
            return Form.SINGLES
        # the walk of a single token isn't split where there may be many
        walk = (self._start + 1)[self._count == 1].max(initial=0)
        few = num_long <= _MOST_LONG_ROWS and self._count.sum() <= MOST_RECORDED and walk <= _LONGEST_WALK
        return Form.MIXED if few else None

    def _find_places(self) -> None:
        first, start, count = (part.numpy() for part in (self._layout.first, self._layout.start, self._layout.count))
        size, table = self._layout.block_size, self._layout.block_table.numpy()
        owner = np.repeat(np.arange(len(count)), count)
        positions = (np.arange(len(owner)) - first[owner] + start[owner]).clip(0)  # before 0 nothing is written
        padded = max(len(owner), min(len(self.places), MOST_RECORDED)) if self.form is Form.MIXED else len(owner)
        places = np.full(padded, _NOTHING, dtype=np.int32)
        places[: len(owner)] = table[owner, positions // size] * size + positions % size
        send(places, self.places[:padded])

    @property
    def all_places(self) -> Tensor:
        """Where tokens are written, whoever does it.  [T]"""
        if self.form is Form.SINGLES:
            self._find_places()
        return self.places

    def num_singles(self, num_tokens: int) -> int:
        """Return for how many rows of one token to compute; a recorded step computes for as many as there can be."""
        return self._num_singles if self.form is None else min(num_tokens, self.max_rows)

    def tiles(self, tokens: int, num_tokens: int) -> Tensor:
        """Return the tiles of up to `tokens` tokens of the longer rows: row and first token in it.  -> [2, N]

        A recorded step of `num_tokens` tokens computes for as many as there can be.
        """
        if self.form is Form.MIXED:
            if tokens not in self._kept_tiles:
                most = _most_tiles(MOST_RECORDED, tokens)
                self._kept_tiles[tokens] = torch.empty(2, most, dtype=torch.int32, device=self.device)
                self._keep(tokens, self._kept_tiles[tokens])
            return self._kept_tiles[tokens][:, : _most_tiles(num_tokens, tokens)]
        if tokens not in self._tiles:
            found = _find_tiles(self._count, tokens)
            self._tiles[tokens] = torch.empty(found.shape, dtype=torch.int32, device=self.device)
            send(found, self._tiles[tokens])
        return self._tiles[tokens]

    def _keep(self, tokens: int, target: Tensor) -> None:
        found = _find_tiles(self._count, tokens)
        padded = np.full(target.shape, _NOTHING, dtype=np.int32)
        padded[:, : found.shape[1]] = found
        send(padded, target)


def _runs(layout: Layout, media: Tensor) -> np.ndarray:
    """Return runs, of tokens apart none, and which are apart.  [T, 2] -> [T, 3]"""
    apart = np.zeros(len(media), dtype=np.uint8) if layout.apart is None else layout.apart.numpy()
    runs = np.where(apart[:, None], 0, media.numpy())
    return np.concatenate((runs, apart[:, None]), axis=1).astype(np.int32)


def _most_tiles(num_tokens: int, tokens: int) -> int:
    return num_tokens // tokens + _MOST_LONG_ROWS


def _find_tiles(count: np.ndarray, tokens: int) -> np.ndarray:
    long = np.flatnonzero(count > 1)
    per_row = -(-count[long] // tokens)
    owner = np.repeat(long, per_row)
    ends = np.cumsum(per_row)
    index = np.arange(len(owner)) - np.repeat(ends - per_row, per_row)
    # the last tiles of a row see the most keys; they start first
    order = np.argsort(-index, kind="stable")
    return np.stack((owner[order], index[order] * tokens)).astype(np.int32)


class TritonAttention:
    """The attention backend for GPUs."""

    recordable = True

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._processors = processors(device)

    def refuses(self, spec: PagedSpec, dtype: torch.dtype, block_size: int, quantized: bool = False) -> str | None:
        """Return the reason, in words, why this backend can't serve such a layer; None if it can."""
        if quantized:
            return "attention on a GPU has no int8 cache; use one of the model's dtype"
        if dtype not in (torch.float32, torch.bfloat16, torch.float16):
            return f"attention on a GPU has no cache of {dtype}; use float32, bfloat16 or float16"
        if max(spec.head_dim, spec.value_dim) > _LARGEST_HEAD:
            return f"attention on a GPU takes heads of up to {_LARGEST_HEAD} elements, not {spec.head_dim}"
        return None

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

    def plan(self, rows: int, tokens: int, blocks: int) -> TritonPlan:
        """Return a plan that has yet to be placed."""
        return TritonPlan(self.device, rows, tokens, blocks)

    def run(
        self, q: Tensor, k: Tensor, v: Tensor, cache: PagedCache, plan: TritonPlan, options: AttentionOptions
    ) -> Tensor:
        """Write k and v into the cache, then attend.  [T, H, E], [T, G, E], [T, G, Ev] -> [T, H, Ev]"""
        if plan.form is not Form.SINGLES:
            write(k, v, cache, plan.places)
        return self._attend((q, k, v), cache, plan, options)

    def attend(
        self, q: Tensor, spec: PagedSpec, cache: PagedCache, plan: TritonPlan, options: AttentionOptions
    ) -> Tensor:
        """Attend to what is in the cache.  [T, H, E] -> [T, H, Ev]"""
        return self._attend((q, None, None), cache, plan, options)

    def write(self, k: Tensor, v: Tensor, cache: PagedCache, plan: TritonPlan) -> None:
        """Write k and v into the cache.  [T, G, E], [T, G, Ev]"""
        write(k, v, cache, plan.all_places)

    def _attend(self, qkv: Qkv, cache: PagedCache, plan: TritonPlan, options: AttentionOptions) -> Tensor:
        q = qkv[0]
        out = torch.empty((*q.shape[:2], cache.values.shape[3]), dtype=q.dtype, device=q.device)
        if num_singles := plan.num_singles(q.shape[0]):
            self._run_singles(qkv, cache, plan, options, out, num_singles)
        if plan.form is not Form.SINGLES:
            self._run_tiles(qkv, cache, plan, options, out)
        return out

    def _run_singles(
        self, qkv: Qkv, cache: PagedCache, plan: TritonPlan, options: AttentionOptions, out: Tensor, count: int
    ) -> None:
        width, kv_heads = cache.values.shape[3], cache.keys.shape[1]
        tiling = _tiling(qkv[0].shape[1] // kv_heads, cache)
        splits = max(1, min(_MAX_SPLITS, _WALKS * self._processors // (count * kv_heads)))
        grid = (count, kv_heads * tiling.cuts, splits)
        if splits == 1:
            _launch(grid, qkv, cache, plan, options, out, (plan.singles, plan.singles), tiling, None)
            return
        parts = torch.empty(*grid, tiling.rows, width + 2, dtype=torch.float32, device=out.device)
        _launch(grid, qkv, cache, plan, options, out, (plan.singles, plan.singles), tiling, parts)
        join_kernel[(count, kv_heads * tiling.group)](
            parts,
            plan.singles,
            plan.rows,
            options.sinks if options.sinks is not None else parts,
            out,
            *out.stride()[:2],
            GROUP=tiling.group,
            HEADS=tiling.heads,
            M=tiling.rows,
            SPLITS=splits,
            SPLITS_PADDED=triton.next_power_of_2(splits),
            EV=width,
            EV_PADDED=triton.next_power_of_2(width),
            SINKS=options.sinks is not None,
            num_warps=4,
            **early(out.device),
        )

    def _run_tiles(self, qkv: Qkv, cache: PagedCache, plan: TritonPlan, options: AttentionOptions, out: Tensor) -> None:
        kv_heads = cache.keys.shape[1]
        tiling = _tiling(qkv[0].shape[1] // kv_heads, cache, 128)
        rows, firsts = plan.tiles(tiling.tokens, qkv[0].shape[0])
        _launch((len(rows), kv_heads * tiling.cuts, 1), qkv, cache, plan, options, out, (rows, firsts), tiling, None)


def processors(device: torch.device) -> int:
    """Return how many programs a device runs side by side at the least."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def _tiling(group: int, cache: PagedCache, rows: int = 1) -> _Tiling:
    """Return sizes for tiles of about `rows` rows, but of all heads of a group where they fit.

    Wide heads and wide numbers leave less room for rows and keys.
    """
    rows = max(16, triton.next_power_of_2(max(rows, group)))
    width = max(cache.keys.shape[3], cache.values.shape[3]) * cache.keys.dtype.itemsize
    if width > 512:
        return _Tiling(group, min(rows, 64), 16 if width > 1024 else 32, 4, 1)
    if rows <= 16:
        return _Tiling(group, rows, 64, 4, 3)
    return _Tiling(group, min(rows, 128), 64 if width > 128 else 128, 8 if rows >= 128 else 4, 3 if width <= 256 else 2)


def write(k: Tensor, v: Tensor, cache: PagedCache, places: Tensor) -> None:
    """Write each token's keys and values to its place in the cache.  [T, G, E], [T, G, Ev], [T]"""
    num_blocks, kv_heads, block_size, width = cache.keys.shape
    value_width = cache.values.shape[3]
    write_kernel[(k.shape[0],)](
        k,
        v,
        cache.keys,
        cache.values,
        places,
        *k.stride()[:2],
        *v.stride()[:2],
        VALUE=cache.values.stride(2),
        S=block_size,
        G=kv_heads,
        G_PADDED=triton.next_power_of_2(kv_heads),
        E=width,
        E_PADDED=triton.next_power_of_2(width),
        EV=value_width,
        EV_PADDED=triton.next_power_of_2(value_width),
        num_warps=4,
        **early(k.device),
    )


def _launch(
    grid: tuple[int, int, int],
    qkv: Qkv,
    cache: PagedCache,
    plan: TritonPlan,
    options: AttentionOptions,
    out: Tensor,
    tiles: tuple[Tensor, Tensor],
    tiling: _Tiling,
    parts: Tensor | None,
) -> None:
    """Run the kernel for tiles: their rows, and their first tokens, which for rows of one token nobody reads.

    The options' tensors that are not there are never read.
    """
    q = qkv[0]
    k, v = (q if x is None else x for x in qkv[1:])
    kv_heads, block_size, width = cache.keys.shape[1:]
    value_width = cache.values.shape[3]
    nothing = plan.rows
    single = tiles[0] is plan.singles
    bias, slopes, sinks = options.bias, options.alibi_slopes, options.sinks
    media = plan.media if options.causal else None
    attend_kernel[grid](
        q, k, v, cache.keys, cache.values, out, parts if parts is not None else out,
        plan.width, plan.rows, plan.table, *tiles,
        nothing if media is None else media, nothing if slopes is None else slopes, nothing if bias is None else bias, nothing if sinks is None else sinks,
        plan.max_rows,
        options.scale * _LOG2_E, options.softcap * _LOG2_E, options.scale / options.softcap if options.softcap else 0.0,
        *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *out.stride()[:2],
        VALUE=cache.values.stride(2), G=kv_heads, GROUP=tiling.group, HEADS=tiling.heads, TOKENS=1 if single else tiling.tokens, LONG=not single,
        S=block_size,
        E=width, E_PADDED=triton.next_power_of_2(width), EV=value_width, EV_PADDED=triton.next_power_of_2(value_width),
        M=tiling.rows, N=tiling.keys, WINDOW=options.window or 0, CAUSAL=options.causal,
        MEDIA=media is not None,
        SOFTCAP=bool(options.softcap), SLOPES=slopes is not None, BIAS=bias is not None,
        REACH=0 if bias is None else bias.shape[1] // 2, SINKS=sinks is not None and parts is None,
        SPLITS=grid[2], WRITES=single and plan.form is Form.SINGLES and qkv[1] is not None,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        num_warps=tiling.warps, num_stages=tiling.stages, **early(q.device),
    )  # fmt: skip
