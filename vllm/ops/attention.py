"""The seam between layers and attention kernels: what a kernel plans, runs and refuses, in a cache of its own layout."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Protocol

import torch
from torch import Tensor

from vllm.kv_cache.spec import PagedSpec


@dataclass(slots=True)
class Layout:
    """Where the tokens of a step are, for one cache group: host arrays and tables, before a backend plans with them.

    first, start, count: [R] int64 on the host.  Row r's tokens are [first, first + count) of the step and stand at
    positions [start, start + count) of their sequence.  Where they attend to another sequence, of N tokens, start is N - count and
    may be negative: nothing is written, and what isn't causal sees all keys up to start + count.
    block_table: [R, B] int32; entry b holds the sequence's tokens [b * block_size, (b + 1) * block_size).
    media: [T, 2] int64 on the host, or None: the run of positions [first, end) that a token sees beside those it sees anyway,
    where attention is causal; its own position alone for most.  Runs are of tokens of this step.
    apart: [T] uint8 on the host, or None: 1 for a token that takes no part in its run: it sees no token behind it, and none before it sees
    it.
    """

    first: Tensor
    start: Tensor
    count: Tensor
    block_table: Tensor
    block_size: int
    media: Tensor | None = None
    apart: Tensor | None = None


@dataclass(frozen=True, slots=True)
class AttentionOptions:
    """What a layer's attention does beside softmax(q kᵀ · scale) v."""

    scale: float
    window: int | None = None
    """See only the last `window` tokens, the token itself included; not causal: those at a distance below `window`."""
    softcap: float = 0.0
    """Above 0: scores become softcap · tanh(scores / softcap)."""
    sinks: Tensor | None = field(default=None, compare=False)
    """[H] float32: a score per head to which nothing belongs; it only takes its share of the softmax."""
    alibi_slopes: Tensor | None = field(default=None, compare=False)
    """[H] float32: -slope · |key's position - query's position| is added to a head's scores, after the softcap.
    https://arxiv.org/abs/2108.12409"""
    causal: bool = True
    """See no later token.  False: see all tokens of the row, up to start + count; for each to see all of its sequence, the
    sequence must be one row of one step."""
    bias: Tensor | None = field(default=None, compare=False)
    """[H, 2 M + 1] float32, contiguous: entry clamp(key's position - query's position, -M, M) + M of a head's row is
    added to its scores, after the softcap.  What is learned per bucket of distances is spread out to them before.
    https://arxiv.org/abs/1910.10683"""


class Form(Enum):
    """What steps have in common for which one recorded computation can be run."""

    ANY = auto()
    """Nothing: kernels find out themselves what a step is like."""
    SINGLES = auto()
    """Each row has one token."""
    MIXED = auto()
    """A few rows have more, and there are not too many tokens."""


MOST_RECORDED = 2048
"""Tokens of a step that is recorded on a GPU.  A larger one keeps the device busy while it is launched kernel by kernel."""


class CachePlan(Protocol):
    """What all layers of a cache group share in a step.  It lives as long as the engine; each step fills it."""

    form: Form | None
    """The form of the step it was last placed for; None: nothing recorded can be run for it."""

    def place(self, layout: Layout) -> None:
        """Prepare for a step.  What the layout holds must not change until the step is computed."""


class CacheBackend(Protocol):
    """One layout of a layer's cache in memory."""

    def allocate(self, spec: Any, num_blocks: int, block_size: int, dtype: torch.dtype, quantized: bool = False) -> Any:
        """Return one layer's cache in this backend's layout.  Its content is finite from the start."""

    def block_bytes(self, spec: Any, block_size: int, dtype: torch.dtype, quantized: bool = False) -> int:
        """Return the bytes of a block of one layer's cache."""

    def copy_block(self, cache: Any, source: int, target: int) -> None:
        """Copy one block of one layer's cache."""

    def plan(self, rows: int, tokens: int, blocks: int) -> Any:
        """Return a plan that has yet to be placed, for at most so many rows and tokens in a step and blocks in a sequence."""


class AttentionBackend(CacheBackend, Protocol):
    """Kernels that read and write one layout of the paged cache."""

    recordable: bool
    """`run` is made of kernels that can be recorded, in `ops.record`."""

    def refuses(self, spec: PagedSpec, dtype: torch.dtype, block_size: int, quantized: bool = False) -> str | None:
        """Return the reason, in words, why this backend can't serve such a layer of a model of `dtype`; None if it can.

        `quantized`: the cache holds 8-bit integers.
        """

    def run(self, q: Tensor, k: Tensor, v: Tensor, cache: Any, plan: Any, options: AttentionOptions) -> Tensor:
        """Write k and v into the cache, then attend.  [T, H, E], [T, G, E], [T, G, Ev] -> [T, H, Ev]"""

    def attend(self, q: Tensor, spec: PagedSpec, cache: Any, plan: Any, options: AttentionOptions) -> Tensor:
        """Attend to what is in the cache.  [T, H, E] -> [T, H, Ev]"""

    def write(self, k: Tensor, v: Tensor, cache: Any, plan: Any) -> None:
        """Write k and v into the cache.  [T, G, E], [T, G, Ev]"""
