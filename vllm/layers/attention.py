"""Self-attention over the paged cache, or over the tokens of one step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

from torch import Tensor, nn

from vllm import ops
from vllm.kv_cache.spec import BlockPattern, Blocks, CacheSpec, Chunk, Full, PagedSpec, Scratch, Window
from vllm.layers.linear import Linear
from vllm.layers.placement import Placement
from vllm.layers.recurrent import Exact
from vllm.layers.step import Step
from vllm.ops.activations import activation
from vllm.ops.attention import AttentionOptions, CachePlan
from vllm.ops.attention_blocks import BlocksPlan
from vllm.ops.attention_chunks import ChunkedPlan
from vllm.ops.per_head import per_head
from vllm.ops.recurrent import softplus


class Attention(nn.Module):
    """Attention with grouped heads.  [T, D] -> [T, D]"""

    def __init__(
        self,
        index: int,
        heads: tuple[int, int, int],
        projections: tuple[nn.Module, Linear],
        *,
        normalize: tuple[nn.Module, nn.Module],
        rotary: nn.Module,
        options: AttentionOptions,
        learned: Sequence[nn.Module] = (),
    ) -> None:
        """`index` counts the attention layers in call order; `heads` is (H, G, E); `projections` are qkv and out;
        `normalize` is what is applied to each head of q and of k; `rotary` turns (q, k, positions) into (q, k); `learned`
        hold what is learned of `options`."""
        super().__init__()
        self.index = index
        self.num_heads, self.num_kv_heads, self.head_dim = heads
        self.qkv, self.out = projections
        self.q_norm, self.k_norm = normalize
        self.rotary = rotary
        self.options = options
        self.learned = nn.ModuleList(learned)

    @property
    def cache_spec(self) -> CacheSpec:
        """What memory this layer needs."""
        shape = (self.num_kv_heads, self.head_dim, self.head_dim)
        if not self.options.causal:
            return Scratch(*shape)
        return Full(*shape) if self.options.window is None else Window(*shape, size=self.options.window)

    def forward(self, x: Tensor, step: Step, residual: Tensor | None = None) -> Tensor:
        heads = self.qkv(x).unflatten(1, (-1, self.head_dim))  # [T, H + 2 G, E]
        return self.out(self.attend(heads, step), residual)

    def attend(self, heads: Tensor, step: Step) -> Tensor:
        """Attend by the heads of q, k and v.  [T, H + 2 G, E] -> [T, H E]"""
        q, k, v = heads.split((self.num_heads, self.num_kv_heads, self.num_kv_heads), dim=1)
        q, k = self.rotary(self.q_norm(q), self.k_norm(k), step.positions)
        return step.attention.run(q, k, v, step.caches[self.index], self.plan(step), self.options).flatten(1)

    def plan(self, step: Step) -> CachePlan:
        return step.plans[step.group_of[self.index]]


class NarrowQuery(nn.Module):
    """A product that makes k, v and something narrow, of which q is made once it is normalised: step 3.  [T, D] -> [T, H E + 2 G E]"""

    def __init__(self, first: Linear, norm: nn.Module, query: Linear, rank: int) -> None:
        """`first` makes the narrow part, then k and v; `rank` is its width."""
        super().__init__()
        self.first, self.norm, self.query = first, norm, query
        self.rank = rank

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        narrow = self.norm(y[:, : self.rank].contiguous())
        return ops.side_by_side(self.query(narrow), y[:, self.rank :].contiguous())


class NormedValueAttention(Attention):
    """Attention whose values are normalised too.  [T, D] -> [T, D]"""

    def __init__(self, v_norm: nn.Module, *args: Any, **options: Any) -> None:
        """`v_norm` is applied to each head of v; the rest as above."""
        super().__init__(*args, **options)
        self.v_norm = v_norm

    def attend(self, heads: Tensor, step: Step) -> Tensor:
        q, k, v = heads.split((self.num_heads, self.num_kv_heads, self.num_kv_heads), dim=1)
        q, k = self.rotary(self.q_norm(q), self.k_norm(k), step.positions)
        cache = step.caches[self.index]
        return step.attention.run(q, k, self.v_norm(v), cache, self.plan(step), self.options).flatten(1)


class SharingAttention(nn.Module):
    """Attention to the keys and values of another layer.  [T, D] -> [T, D]"""

    def __init__(
        self, source: Attention, projections: tuple[Linear, Linear], *, normalize: nn.Module, rotary: nn.Module
    ) -> None:
        """`source` is the other layer; `projections` are q and out; `normalize` is what is applied to each head of q."""
        super().__init__()
        self.query, self.out = projections
        self.q_norm = normalize
        self.rotary = rotary
        self.source_index, self.head_dim = source.index, source.head_dim
        self.options, self.source_spec = source.options, cast("PagedSpec", source.cache_spec)

    def forward(self, x: Tensor, step: Step, residual: Tensor | None = None) -> Tensor:
        q = self.q_norm(self.query(x).unflatten(1, (-1, self.head_dim)))
        q, _ = self.rotary(q, q[:, :0], step.positions)
        cache, plan = step.caches[self.source_index], step.plans[step.group_of[self.source_index]]
        found = step.attention.attend(q, self.source_spec, cache, plan, self.options)
        return self.out(found.flatten(1), residual)


class HeadScores(nn.Module):
    """A product of each head's query with a vector of its own.  [T, H, E] -> [T, H, 1]"""

    def __init__(self, heads: int, head_dim: int, name: str, placement: Placement) -> None:
        """`heads` are those of the model, of which this process has its share."""
        super().__init__()
        count, cut = placement.group.share(heads, "attention heads"), partial(placement.group.cut, dim=0)
        self.weight = Exact(count, head_dim, name=f"{name}.weight", placement=placement, cut=cut)
        self.bias = Exact(count, name=f"{name}.bias", placement=placement, cut=cut)

    def forward(self, q: Tensor) -> Tensor:
        return per_head(q.float(), self.weight.value[:, :, None]) + self.bias.value[:, None]


class RecallingAttention(Attention):
    """Attention to a layer's own tokens and to those of an earlier one, weighed by head.  [T, D] -> [T, D]"""

    def __init__(self, source: Attention, scores: HeadScores, *args: Any, **options: Any) -> None:
        """`source` is the earlier layer, `scores` make its share before a sigmoid; the rest as above."""
        super().__init__(*args, **options)
        self.scores = scores
        self.source_index = source.index
        self.source_options, self.source_spec = source.options, cast("PagedSpec", source.cache_spec)

    def attend(self, heads: Tensor, step: Step) -> Tensor:
        q, k, v = heads.split((self.num_heads, self.num_kv_heads, self.num_kv_heads), dim=1)
        q, k = self.rotary(self.q_norm(q), self.k_norm(k), step.positions)
        own = step.attention.run(q, k, v, step.caches[self.index], self.plan(step), self.options).float()
        cache, plan = step.caches[self.source_index], step.plans[step.group_of[self.source_index]]
        recalled = step.attention.attend(q, self.source_spec, cache, plan, self.source_options).float()
        share = activation(self.scores(q), "sigmoid")
        return (recalled * share + own * (1 - share)).to(q.dtype).flatten(1)


class ChunkedAttention(Attention):
    """Attention within chunks of tokens.  [T, D] -> [T, D]"""

    def __init__(self, size: int, before: int, *args: Any, **options: Any) -> None:
        """`size`: of a chunk; `before`: how many chunks before its own a token sees; the rest as above."""
        super().__init__(*args, **options)
        self.size, self.before = size, before

    @property
    def cache_spec(self) -> CacheSpec:
        """What memory this layer needs."""
        return Chunk(self.num_kv_heads, self.head_dim, self.head_dim, self.size, self.before)

    def plan(self, step: Step) -> CachePlan:
        plan = super().plan(step)
        assert isinstance(plan, ChunkedPlan)
        return plan.pieces


class BlockAttention(Attention):
    """Attention whose heads see some blocks of tokens, each others.  [T, D] -> [T, D]"""

    def __init__(self, pattern: BlockPattern, *args: Any, **options: Any) -> None:
        """`pattern`: which ones; the rest as above."""
        super().__init__(*args, **options)
        self.pattern = pattern

    @property
    def cache_spec(self) -> CacheSpec:
        """What memory this layer needs."""
        return Blocks(self.num_kv_heads, self.head_dim, self.head_dim, self.pattern)

    def attend(self, heads: Tensor, step: Step) -> Tensor:
        q, k, v = heads.split((self.num_heads, self.num_kv_heads, self.num_kv_heads), dim=1)
        q, k = self.rotary(self.q_norm(q), self.k_norm(k), step.positions)
        plan = self.plan(step)
        assert isinstance(plan, BlocksPlan)
        return plan.run(step.attention, (q, k, v), step.caches[self.index], self.options).flatten(1)


class GatedAttention(Attention):
    """Attention whose result is weighted, element by element.  [T, D] -> [T, D]"""

    def __init__(self, activation: str, *args: Any, **options: Any) -> None:
        """`activation`: of the weights; the rest as above."""
        super().__init__(*args, **options)
        self.activation = activation

    def forward(self, x: Tensor, step: Step, residual: Tensor | None = None) -> Tensor:
        heads = self.qkv(x).unflatten(1, (-1, self.head_dim))  # [T, H + 2 G + H, E]
        heads, gate = heads.split((self.num_heads + 2 * self.num_kv_heads, self.num_heads), dim=1)
        return self.out(self.open(self.attend(heads, step), gate.flatten(1)), residual)

    def open(self, found: Tensor, gate: Tensor) -> Tensor:
        """Weigh the result.  [T, H E], [T, H E] -> [T, H E]"""
        return ops.gate(found, gate, self.activation)


class SoftplusGatedAttention(GatedAttention):
    """The same, weighted by log2(1 + 2^gate): k2 horizon.  [T, D] -> [T, D]"""

    def open(self, found: Tensor, gate: Tensor) -> Tensor:
        opened = softplus(gate.float() * math.log(2)) / math.log(2)
        return (found.float() * opened).to(gate.dtype)


class HeadGatedAttention(Attention):
    """Attention each of whose heads is weighted by a sigmoid: step 3.5.  [T, D] -> [T, D]"""

    def forward(self, x: Tensor, step: Step, residual: Tensor | None = None) -> Tensor:
        heads, gate = self.qkv(x).tensor_split((-self.num_heads,), dim=1)  # [T, (H + 2 G) E], [T, H]
        found = self.attend(heads.unflatten(1, (-1, self.head_dim)), step)
        return self.out(ops.gate(found, gate.repeat_interleave(self.head_dim, 1), "sigmoid"), residual)
