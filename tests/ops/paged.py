"""Sequences in a paged cache, and dense attention to compare with."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from vllm.kv_cache.spec import CacheSpec, Full, Latent, Window
from vllm.ops.attention import AttentionBackend, AttentionOptions, Layout


@dataclass(frozen=True, slots=True)
class Shape:
    heads: int
    kv_heads: int
    head_dim: int
    window: int | None = None
    softcap: float = 0.0
    block_size: int = 16
    sinks: bool = False
    alibi: bool = False
    value_dim: int | None = None
    causal: bool = True
    reach: int | None = None
    """The distance from which on a learned bias stays the same; None: there is none."""
    latent: bool = False
    """Whether values are the first elements of keys."""

    @property
    def options(self) -> AttentionOptions:
        sinks = torch.linspace(-1, 2, self.heads) if self.sinks else None
        slopes = torch.linspace(0.01, 0.3, self.heads) if self.alibi else None
        bias = None
        if self.reach is not None:
            bias = torch.arange(self.heads * (2 * self.reach + 1)).sin().view(self.heads, -1)
        return AttentionOptions(self.head_dim**-0.5, self.window, self.softcap, sinks, slopes, self.causal, bias)

    @property
    def spec(self) -> CacheSpec:
        widths = (self.kv_heads, self.head_dim, self.value_dim or self.head_dim)
        if self.latent:
            return Latent(*widths)
        return Full(*widths) if self.window is None else Window(*widths, size=self.window)

    def draw(self, length: int, dtype: torch.dtype) -> Sequence:
        """Random q [L, H, E], k [L, G, E] and v [L, G, Ev]."""
        spec = self.spec
        sizes = ((self.heads, spec.head_dim), (self.kv_heads, spec.head_dim), (self.kv_heads, spec.value_dim))
        q, k, v = (torch.randn(length, *size).to(dtype) for size in sizes)
        return q, k, k[..., : spec.value_dim].clone() if self.latent else v


Sequence = tuple[Tensor, Tensor, Tensor]


def reference(shape: Shape, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Dense attention of one sequence, in float64.  [L, H, E], [L, G, E], [L, G, Ev] -> [L, H, Ev]"""
    group = shape.heads // shape.kv_heads
    options = shape.options
    k, v = k.double().repeat_interleave(group, 1), v.double().repeat_interleave(group, 1)
    scores = torch.einsum("qhe,khe->hqk", q.double(), k) * options.scale
    if shape.softcap:
        scores = shape.softcap * torch.tanh(scores / shape.softcap)
    behind = torch.arange(len(q))[:, None] - torch.arange(len(q))
    if options.alibi_slopes is not None:
        scores = scores - options.alibi_slopes.double()[:, None, None] * behind.abs()
    if options.bias is not None and shape.reach is not None:
        scores = scores + options.bias.double()[:, (-behind).clamp(-shape.reach, shape.reach) + shape.reach]
    visible = behind.abs() < (shape.window or len(q))
    if shape.causal:
        visible &= behind >= 0
    weights = scores.masked_fill(~visible, -torch.inf).exp()
    total = weights.sum(-1, keepdim=True)
    if options.sinks is not None:
        total = total + options.sinks.double().exp()[:, None, None]
    return torch.einsum("hqk,khe->qhe", weights / total, v)


class Paged:
    """Sequences whose tokens live in shuffled blocks that last held somebody's NaN."""

    def __init__(
        self, backend: AttentionBackend, shape: Shape, sequences: list[Sequence], quantized: bool = False
    ) -> None:
        self.shape, self.sequences, self.backend = shape, sequences, backend
        width = -(-max(len(q) for q, _, _ in sequences) // shape.block_size)
        needed = [-(-len(q) // shape.block_size) for q, _, _ in sequences]
        self.num_blocks = sum(needed) + 1
        tokens = self.num_blocks * shape.block_size
        self.plan = backend.plan(len(sequences), tokens, self.num_blocks)
        self.table = torch.zeros(len(sequences), width, dtype=torch.int32)
        for row, mine in enumerate((torch.randperm(self.num_blocks - 1) + 1).split(needed)):
            self.table[row, : len(mine)] = mine.int()
        self.dtype = sequences[0][1].dtype
        self.cache = backend.allocate(shape.spec, self.num_blocks, shape.block_size, self.dtype, quantized)
        self.spoil(torch.arange(self.num_blocks))

    def spoil(self, blocks: Tensor) -> None:
        """Write NaN into all tokens of some blocks."""
        length = len(blocks) * self.shape.block_size
        nothing = [torch.full_like(part, torch.nan) for part in self.shape.draw(length, self.dtype)]
        layout = Layout(_one(0), _one(0), _one(length), blocks.int()[None], self.shape.block_size)
        self._run(nothing, layout)

    def step(self, ranges: dict[int, tuple[int, int]], media: Tensor | None = None) -> dict[int, Tensor]:
        """Compute tokens [start, end) of some of the sequences, which see runs [T, 2] of media.  Row -> [count, H, Ev]"""
        rows = list(ranges)
        start = torch.tensor([ranges[row][0] for row in rows])
        count = torch.tensor([ranges[row][1] for row in rows]) - start
        parts = [torch.cat([self.sequences[row][which][slice(*ranges[row])] for row in rows]) for which in range(3)]
        first, table = count.cumsum(0) - count, self.table[rows]
        out = self._run(parts, Layout(first, start, count, table, self.shape.block_size, media))
        return dict(zip(rows, out.split(count.tolist()), strict=True))

    def all_whole(self) -> list[Tensor]:
        """Compute all sequences in one step.  -> [L, H, Ev] each"""
        return list(self.step({row: (0, len(q)) for row, (q, _, _) in enumerate(self.sequences)}).values())

    def whole(self, row: int, sizes: list[int]) -> Tensor:
        """Compute one sequence alone in steps of the given sizes, the last one again and again."""
        parts, start, length = [], 0, len(self.sequences[row][0])
        while start < length:
            size = sizes[min(len(parts), len(sizes) - 1)]
            parts.append(self.step({row: (start, min(length, start + size))})[row])
            start += size
        return torch.cat(parts)

    def _run(self, parts: list[Tensor], layout: Layout) -> Tensor:
        with torch.device("cpu"):
            self.plan.place(Layout(*(_here(getattr(layout, each.name)) for each in fields(layout))))
        return self.backend.run(*_views_of_one_buffer(parts), self.cache, self.plan, self.shape.options)


def _views_of_one_buffer(parts: list[Tensor]) -> Any:
    """Lay q, k and v side by side, as one product makes them, with more behind."""
    spare = parts[0].new_full((len(parts[0]), 3), torch.nan)
    buffer = torch.cat([part.flatten(1) for part in parts] + [spare], dim=1)
    ends = [part[0].numel() for part in parts]
    views = buffer.split([*ends, 3], dim=1)[:3]
    return [view.unflatten(1, part.shape[1:]) for view, part in zip(views, parts, strict=True)]


def _here(part: Any) -> Any:
    """Return a part of a layout where layouts are made."""
    return part.cpu() if isinstance(part, Tensor) else part


def _one(number: int) -> Tensor:
    return torch.tensor([number])
