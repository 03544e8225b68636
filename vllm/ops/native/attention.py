"""Paged attention with the native kernels.

A layer's cache is one run of pages, 16 tokens each, in the order that attention_cache.inl describes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vllm.kv_cache.spec import PagedSpec
from vllm.ops.attention import AttentionOptions, Form, Layout
from vllm.ops.memory import empty, zeros
from vllm.ops.native import TYPES, address, library

_PAGE = 16  # tokens
_LANES = 16
_MOST_WIDTH = 1024
_MEMORY_PAGE = 4096  # bytes; a page of 16 tokens that lies across two of them costs two lookups

_PLAN = np.dtype(
    [(name, "u8") for name in ("first", "start", "count", "blocks", "media", "apart")]
    + [(name, "i8") for name in ("num_rows", "table_width", "block_size")]
)
"""struct AttentionPlan of kernels.hpp"""


@dataclass(frozen=True, slots=True)
class NativeCache:
    """One layer's keys and values."""

    pages: Tensor
    """[num_blocks, bytes of a block] uint8"""
    quantized: bool


class NativePlan:
    """Where the tokens of a step are.  The kernels read it through one address, which stays the same."""

    form = Form.ANY

    def __init__(self) -> None:
        self._facts = np.zeros(1, dtype=_PLAN)
        self._held: tuple[Tensor, ...] = ()
        self.address = self._facts.ctypes.data

    def place(self, layout: Layout) -> None:
        """Point at a step's rows and tables."""
        places = (layout.first, layout.start, layout.count, layout.block_table)
        self._held = tuple(tensor.contiguous() for tensor in places)
        addresses = [tensor.data_ptr() for tensor in self._held]
        runs = (layout.media, layout.apart)
        self._held += tuple(tensor for tensor in runs if tensor is not None)
        self._facts[0] = (*addresses, *map(address, runs), *layout.block_table.shape, layout.block_size)


class NativeAttention:
    """The attention backend for processors."""

    recordable = True

    def refuses(self, spec: PagedSpec, dtype: torch.dtype, block_size: int, quantized: bool = False) -> str | None:
        """Return the reason, in words, why the kernels can't serve such a layer; None if they can."""
        if dtype not in TYPES:
            return f"the kernels' attention computes in float32 and bfloat16, not in {dtype}"
        if block_size % _PAGE:
            return f"the kernels' cache has blocks of a multiple of {_PAGE} tokens, not of {block_size}"
        if max(spec.head_dim, spec.value_dim) > _MOST_WIDTH:
            return f"the kernels' attention has heads of at most {_MOST_WIDTH} elements, not of {spec.head_dim}"
        if dtype == torch.bfloat16 and spec.head_dim % 2:
            return f"the kernels' attention has heads of an even number of bfloat16 elements, not of {spec.head_dim}"
        return None

    def allocate(
        self, spec: PagedSpec, num_blocks: int, block_size: int, dtype: torch.dtype, quantized: bool = False
    ) -> NativeCache:
        """Return one layer's cache, zeroed."""
        block_bytes = self.block_bytes(spec, block_size, dtype, quantized)
        size = num_blocks * block_bytes
        memory = zeros(size + _MEMORY_PAGE, dtype=torch.uint8, device=torch.device("cpu"))
        first = -memory.data_ptr() % _MEMORY_PAGE
        return NativeCache(memory[first : first + size].view(num_blocks, block_bytes), quantized)

    def block_bytes(self, spec: PagedSpec, block_size: int, dtype: torch.dtype, quantized: bool = False) -> int:
        """Return the bytes of a block of one layer's cache.  Values are padded to whole vectors."""
        elements = block_size * (spec.head_dim + -(-spec.value_dim // _LANES) * _LANES)
        scales = 2 * block_size * 4
        return spec.kv_heads * (elements + scales if quantized else elements * dtype.itemsize)

    def copy_block(self, cache: NativeCache, source: int, target: int) -> None:
        """Copy one block of one layer's cache."""
        cache.pages[target] = cache.pages[source]

    def plan(self, rows: int, tokens: int, blocks: int) -> NativePlan:
        """Return a plan that has yet to be placed."""
        return NativePlan()

    def run(
        self, q: Tensor, k: Tensor, v: Tensor, cache: NativeCache, plan: NativePlan, options: AttentionOptions
    ) -> Tensor:
        """Write k and v into the cache, then attend.  [T, H, E], [T, G, E], [T, G, Ev] -> [T, H, Ev]"""
        out = empty(q.shape[0], q.shape[1], v.shape[2], dtype=q.dtype)
        _call((q, k, v, out), k.shape[1:] + v.shape[2:], cache, plan, options)
        return out

    def attend(
        self, q: Tensor, spec: PagedSpec, cache: NativeCache, plan: NativePlan, options: AttentionOptions
    ) -> Tensor:
        """Attend to what is in the cache.  [T, H, E] -> [T, H, Ev]"""
        out = empty(q.shape[0], q.shape[1], spec.value_dim, dtype=q.dtype)
        _call((q, None, None, out), (spec.kv_heads, spec.head_dim, spec.value_dim), cache, plan, options)
        return out

    def write(self, k: Tensor, v: Tensor, cache: NativeCache, plan: NativePlan) -> None:
        """Write k and v into the cache.  [T, G, E], [T, G, Ev]"""
        _call((None, k, v, None), k.shape[1:] + v.shape[2:], cache, plan, _NO_OPTIONS)


_NO_OPTIONS = AttentionOptions(1.0)


def _call(
    tensors: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    shape: tuple[int, ...],
    cache: NativeCache,
    plan: NativePlan,
    options: AttentionOptions,
) -> None:
    """Call the kernel with (q, k, v, out).  `shape`: (G, E, Ev)"""
    q, k, v, out = tensors
    given = [x for x in (q, k, v) if x is not None]
    kv_heads, width, value_width = shape
    heads = kv_heads if q is None else q.shape[1]
    bias = options.bias
    assert bias is None or (bias.is_contiguous() and bias.dtype == torch.float32), "a row of bias for each head"
    assert all(x.stride(2) == 1 and x.stride(1) == x.shape[2] for x in given), "heads lie side by side"
    library().attention(
        given[0].shape[0],
        address(q),
        address(k),
        address(v),
        address(out),
        address(cache.pages),
        plan.address,
        address(options.sinks),
        address(options.alibi_slopes),
        address(bias),
        *(0 if x is None else x.stride(0) for x in (q, k, v)),
        heads * value_width,
        heads,
        kv_heads,
        width,
        value_width,
        0 if bias is None else bias.shape[1] // 2,
        options.window or 0,
        options.scale,
        options.softcap,
        TYPES[given[0].dtype],
        int(cache.quantized),
        int(options.causal),
    )
