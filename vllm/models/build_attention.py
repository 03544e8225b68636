"""From the spec of attention to a module; a part of `build`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vllm.errors import ConfigError, ModelError
from vllm.layers.attention import (
    Attention,
    BlockAttention,
    ChunkedAttention,
    GatedAttention,
    HeadGatedAttention,
    HeadScores,
    NarrowQuery,
    NormedValueAttention,
    RecallingAttention,
    SharingAttention,
    SoftplusGatedAttention,
)
from vllm.layers.differential import DifferentialAttention, Share
from vllm.layers.linear import Clipped, Linear, Part, cut_third, split
from vllm.layers.norm import HeadsNorm, OwnNorms, OwnRmsNorms, PlainRmsNorm, RmsNorm
from vllm.layers.position_bias import Alibi, RelativeBias, alibi_slopes, root_bias
from vllm.layers.recurrent import Exact
from vllm.layers.rotary import NormedRotary, TemperedRotary
from vllm.layers.value_experts import ChosenValues
from vllm.models.spec import AttentionSpec, MoeSpec, PairsSpec
from vllm.ops.attention import AttentionOptions
from vllm.ops.moe import Routing

if TYPE_CHECKING:
    from vllm.models.build import Builder, Index


def build_attention(
    builder: Builder,
    index: Index,
    attention: AttentionSpec,
    qkv: nn.Module | None = None,
    kind: Callable[..., Attention] | None = None,
) -> Attention:
    """Make a layer's attention; `qkv` is what makes q, k and v, if it isn't a matrix of this layer alone, and `kind` what it
    is if its spec doesn't say so."""
    if attention.heads % attention.kv_heads:
        raise ModelError(
            f"{attention.heads} attention heads cannot share {attention.kv_heads} key-value heads evenly; "
            "check num_attention_heads and num_key_value_heads in the model's config"
        )
    if qkv is None and attention.query_rank:
        qkv = _narrow_query(builder, index, attention)
    if qkv is None and attention.values is not None:
        qkv = _chosen_values(builder, index, attention, attention.values)
    if qkv is None:
        qkv = builder.linear(builder.spec.width, qkv_parts(builder, index, attention), attention.qkv_bias, shard="rows")
    if attention.clip is not None:
        qkv = Clipped(qkv, attention.clip)
    out = [builder.branch_end("o", index)]
    options, learned = _options(builder, index, attention)
    group = builder.placement.group
    heads = (
        group.share(attention.heads, "attention heads"),
        group.share(attention.kv_heads, "key-value heads"),
        attention.head_dim,
    )
    norms, rotary = _head_norms(builder, index, attention), _tempered(builder, attention)
    if attention.head_norm == "turned":
        norms, rotary = (nn.Identity(), nn.Identity()), NormedRotary(rotary, *norms)
    return (kind or _kind(builder, index, attention))(
        builder.next_cache(),
        heads,
        (qkv, builder.linear(attention.heads * attention.head_dim, out, attention.out_bias, shard="width")),
        normalize=norms,
        rotary=rotary,
        options=options,
        learned=learned,
    )


def _narrow_query(builder: Builder, index: Index, attention: AttentionSpec) -> NarrowQuery:
    """Make what makes q, k and v, q by way of something narrow."""
    rank, kv, q = attention.query_rank, attention.kv_heads * attention.head_dim, attention.heads * attention.head_dim
    parts = [Part(builder.name(role, index), rows) for role, rows in (("q", rank), ("k", kv), ("v", kv))]
    return NarrowQuery(
        builder.linear(builder.spec.width, parts, attention.qkv_bias),
        builder.norm(rank, builder.name("q_a_norm", index)),
        builder.linear(rank, [Part(builder.name("q_b", index), q)], False),
        rank,
    )


def _chosen_values(builder: Builder, index: Index, attention: AttentionSpec, values: MoeSpec) -> ChosenValues:
    """Make what makes q, k and v, v by experts."""
    if builder.placement.group.size > 1:
        raise ConfigError("experts for values can't be shared among processes; use tensor_parallel_size=1")
    q, k, v, *behind = qkv_parts(builder, index, attention)
    width, exact = builder.spec.width, builder.placement.unquantized
    router = Linear(width, [Part(builder.name("value_router", index), values.num_experts)], exact)
    correction = None
    if values.corrected:
        name = builder.name("value_correction", index)
        correction = Exact(values.num_experts, name=name, placement=builder.placement)
    names = [builder.name("value_expert", index, expert) for expert in range(values.num_experts)]
    return ChosenValues(
        builder.linear(width, [q, k, *behind], attention.qkv_bias),
        q.rows + k.rows,
        (router, correction),
        (builder.placement.experts(values.num_experts, v.rows, width), names),
        routing=Routing(values.top_k, values.renormalize, values.scores == "sigmoid", scale=values.scale),
        activation=values.activation,
    )


def _pairs(builder: Builder, index: Index, attention: AttentionSpec, pairs: PairsSpec) -> Callable[..., Attention]:
    """Return what makes an attention by pairs of heads."""
    if builder.placement.group.size > 1:
        raise ConfigError("pairs of heads can't be shared among processes; use tensor_parallel_size=1")
    q1, k1, q2, k2 = (
        Exact(attention.head_dim, name=builder.name(role, index), placement=builder.placement)
        for role in ("pair_q1", "pair_k1", "pair_q2", "pair_k2")
    )
    norm = RmsNorm(2 * attention.head_dim, builder.name("pair_norm", index), builder.placement, pairs.norm_eps)
    return partial(DifferentialAttention, Share(pairs.start, (q1, k1, q2, k2)), norm)


def _kind(builder: Builder, index: Index, attention: AttentionSpec) -> Callable[..., Attention]:
    if attention.pairs is not None:
        return _pairs(builder, index, attention, attention.pairs)
    if attention.chunk is not None:
        return partial(ChunkedAttention, attention.chunk, attention.chunks_before)
    if attention.blocks is not None:
        phases = builder.placement.group.cut(torch.tensor(attention.blocks.phases), 0)
        return partial(BlockAttention, replace(attention.blocks, phases=tuple(phases.tolist())))
    if attention.value_norm:
        v_norm = PlainRmsNorm(attention.head_dim, builder.placement, builder.spec.norm.eps)
        return partial(NormedValueAttention, v_norm)
    if attention.head_gated:
        return HeadGatedAttention
    if not attention.gated:
        return Attention
    kind = SoftplusGatedAttention if attention.gate_activation == "softplus" else GatedAttention
    return partial(kind, attention.gate_activation)


def build_recalling(builder: Builder, index: Index, attention: AttentionSpec, source: Attention) -> RecallingAttention:
    """Make an attention that attends to what another one keeps, too."""
    name = builder.name("recall", index)
    make = partial(HeadScores, attention.heads, attention.head_dim, name, builder.placement)
    kind = partial(RecallingAttention, source, builder.once(make, name))
    made = build_attention(builder, index, attention, kind=kind)
    assert isinstance(made, RecallingAttention)
    return made


def build_sharing(builder: Builder, index: Index, attention: AttentionSpec, source: Attention) -> SharingAttention:
    """Make an attention to what another one keeps."""
    rows = attention.heads * attention.head_dim
    q = [Part(builder.name("q", index), rows)]
    return SharingAttention(
        source,
        (
            builder.linear(builder.spec.width, q, attention.qkv_bias, shard="rows"),
            builder.linear(rows, [builder.branch_end("o", index)], attention.out_bias, shard="width"),
        ),
        normalize=_head_norm(builder, "q_norm", index, attention),
        rotary=builder.rotary(attention.rope),
    )


def _options(builder: Builder, index: Index, attention: AttentionSpec) -> tuple[AttentionOptions, list[nn.Module]]:
    """Return what an attention does beside its products, and the modules that hold what is learned of it."""
    options = AttentionOptions(attention.scale, attention.window, attention.softcap, causal=attention.causal)
    buckets, group = attention.position_bias, builder.placement.group
    if attention.sinks:
        heads = group.share(attention.heads, "attention heads")
        name, cut = builder.name("sinks", index), partial(group.cut, dim=0)
        sinks = Exact(heads, name=name, placement=builder.placement, cut=cut)
        return replace(options, sinks=sinks.value), [sinks]
    if isinstance(buckets, Alibi):
        return _with_distances(builder, attention, buckets, options), []
    if buckets is None:
        return options, []
    if builder.placement.group.size > 1:
        raise ConfigError("a learned position bias can't be shared among processes; use tensor_parallel_size=1")
    name = builder.name("relative_bias", index)
    if (buckets, name) not in builder.biases:
        builder.biases[buckets, name] = RelativeBias(attention.heads, buckets, name, builder.placement)
    bias = builder.biases[buckets, name]
    return replace(options, bias=bias.table), [bias]


def _with_distances(
    builder: Builder, attention: AttentionSpec, alibi: Alibi, options: AttentionOptions
) -> AttentionOptions:
    """Return the options with what scores get for distances."""
    device = builder.placement.device
    slopes = builder.placement.group.cut(alibi_slopes(attention.heads), 0)
    if alibi.root:
        key = (alibi, attention.heads)
        if key not in builder.root_biases:
            builder.root_biases[key] = root_bias(slopes, builder.max_model_len).to(device)
        return replace(options, bias=builder.root_biases[key])
    return replace(options, alibi_slopes=(slopes * attention.scale if alibi.scaled else slopes).to(device))


def qkv_parts(builder: Builder, index: Index, attention: AttentionSpec) -> list[Part]:
    q, kv = attention.heads * attention.head_dim, attention.kv_heads * attention.head_dim
    if attention.layout == "q_k":
        return [Part(builder.name(role, index), rows) for role, rows in (("q", q), ("k", kv), ("k", kv))]
    if attention.layout == "gate":
        parts = [Part(builder.name(role, index), rows) for role, rows in (("q", q), ("k", kv), ("v", kv))]
        return [*parts, Part(builder.name("attention_gate", index), q, bias="")]
    if attention.gated:
        q_cut, gate_cut = (partial(_cut_group, which, 1, 2, attention.head_dim) for which in range(2))
        key_value = [Part(builder.name(role, index), kv) for role in ("k", "v")]
        return [Part(builder.name("q", index), q, q_cut), *key_value, Part(builder.name("q", index), q, gate_cut)]
    if attention.layout == "split":
        parts = [builder.part(role, index, rows) for role, rows in (("q", q), ("k", kv), ("v", kv))]
        if attention.head_gated:
            parts.append(Part(builder.name("attention_gate", index), attention.heads, bias=""))
        return parts if attention.k_bias else [parts[0], replace(parts[1], bias=""), *parts[2:]]
    if attention.layout == "q_kv":
        pair = [partial(_cut_group, which, 1, 2, attention.head_dim) for which in range(2)]
        key_value = [Part(builder.name("kv", index), kv, cut) for cut in pair]
        return [Part(builder.name("q", index), q), *key_value]
    name = builder.name("qkv", index)
    if attention.layout == "per_group":
        group, sizes = attention.heads // attention.kv_heads, (q, kv, kv)
        return [
            Part(name, size, partial(_cut_group, first, count, group + 2, attention.head_dim))
            for first, count, size in zip((0, group, group + 1), (group, 1, 1), sizes, strict=True)
        ]
    if attention.layout == "concat":
        return [Part(name, q + 2 * kv)] if builder.placement.group.size == 1 else split(name, (q, kv, kv))
    return [Part(name, q, partial(cut_third, which, attention.head_dim)) for which in range(3)]


def _head_norms(builder: Builder, index: Index, attention: AttentionSpec) -> tuple[nn.Module, nn.Module]:
    return _head_norm(builder, "q_norm", index, attention), _head_norm(builder, "k_norm", index, attention)


def _head_norm(builder: Builder, role: str, index: Index, attention: AttentionSpec) -> nn.Module:
    count = attention.heads if role == "q_norm" else attention.kv_heads
    if attention.own_norms is not None:
        eps, bias = attention.own_norms.eps, attention.own_norms.bias
        if attention.own_norms.kind == "rms":
            if builder.placement.group.size > 1:
                raise ConfigError("norms of each head can't be shared among processes; use tensor_parallel_size=1")
            return OwnRmsNorms(count, attention.head_dim, builder.name(role, index), builder.placement, eps)
        return OwnNorms(count, attention.head_dim, builder.name(role, index), builder.placement, eps, bias=bias)
    if attention.head_norm in ("head", "turned"):
        return builder.norm(attention.head_dim, builder.name(role, index), role)
    if attention.head_norm == "":
        return nn.Identity()
    if attention.head_norm == "plain":
        return PlainRmsNorm(attention.head_dim, builder.placement, builder.spec.norm.eps)
    if builder.placement.group.size > 1:
        raise ConfigError("a norm over all heads can't be shared among processes; use tensor_parallel_size=1")
    return HeadsNorm(builder.norm(count * attention.head_dim, builder.name(role, index)))


def _tempered(builder: Builder, attention: AttentionSpec) -> nn.Module:
    rotary = builder.rotary(attention.rope)
    if attention.tempering is None:
        return rotary
    return TemperedRotary(rotary, attention.tempering, builder.max_model_len, builder.placement.device)


def _cut_group(first: int, count: int, group: int, head_dim: int, stored: Tensor) -> Tensor:
    """Take heads [first, first + count) of each group of `group` heads.  [N, D] or [N]"""
    return stored.unflatten(0, (-1, group, head_dim))[:, first : first + count].flatten(0, 2)
