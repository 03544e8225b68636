"""From a spec to modules.  Every choice of a spec is made here, once; nothing is left to ask in a forward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from vllm import ops
from vllm.errors import ConfigError, ModelError, did_you_mean
from vllm.layers.assistant import Kept
from vllm.layers.attention import Attention, ChunkedAttention, GatedAttention
from vllm.layers.blocks import (
    AfterBranch,
    Beside,
    FeedForward,
    Parallel,
    PostNorm,
    PostNormCross,
    PreNorm,
    PreNormCross,
    Sandwich,
    Single,
    Together,
    announce_norms,
)
from vllm.layers.embedding import Embedding, Head, OwnOrTied, Positions, Sum, TiedLinear, TokenInput, TokenTypes, Waves
from vllm.layers.linear import Linear, Part, scaled, split
from vllm.layers.mlp import Mlp
from vllm.layers.norm import HeadsNorm, LayerNorm, PlainRmsNorm, RmsNorm
from vllm.layers.placement import Placement
from vllm.layers.pooler import Pooler
from vllm.layers.position_bias import Alibi, Buckets, RelativeBias, alibi_slopes
from vllm.layers.recurrent import Exact
from vllm.layers.rotary import NoRotary, Rope, Rotary, SpatialRotary, TemperedRotary
from vllm.layers.skip import Passed, Way
from vllm.layers.transformer import Transformer
from vllm.models.build_assistant import build_assisted
from vllm.models.build_cross import build_cross, build_encoder, build_sound_input
from vllm.models.build_experts import build_experts
from vllm.models.build_latent import build_latent
from vllm.models.build_recurrent import build_recurrent
from vllm.models.spec import (
    AttentionSpec,
    LatentSpec,
    LayerSpec,
    Mixer,
    MlpSpec,
    MoeSpec,
    TogetherSpec,
    TransformerSpec,
)
from vllm.ops.attention import AttentionOptions

Module = TypeVar("Module", bound=nn.Module)
Index = int | str
"""A layer's number, or what the names of its tensors have instead"""

_BLOCKS: dict[str, tuple[Callable[..., nn.Module], tuple[str, ...]]] = {
    "pre": (PreNorm, ("norm1", "norm2")),
    "pre_ffn": (PreNorm, ("", "norm2")),
    "post": (PostNorm, ("norm1", "norm2")),
    "after": (AfterBranch, ("norm1_after", "norm2_after")),
    "sandwich": (Sandwich, ("norm1", "norm1_after", "norm2", "norm2_after")),
    "parallel": (Parallel, ("norm1", "norm2")),
    "parallel_one": (Parallel, ("norm1", "norm1")),
    "single": (Single, ("norm1",)),
    "ffn": (FeedForward, ("norm1",)),
    "beside": (Beside, ("norm1", "norm2", "norm_beside")),
    "pre_cross": (PreNormCross, ("norm1", "norm_cross", "norm2")),
    "post_cross": (PostNormCross, ("norm1", "norm_cross", "norm2")),
}
"""Block → its class, and the roles of its norms in the order it takes them; "" where there is none."""


def build_transformer(
    spec: TransformerSpec, placement: Placement, max_model_len: int, pooler: Pooler | None = None
) -> Transformer:
    """Make the modules of a spec.  Their weights are undefined until the model's windows are filled.

    Raises ModelError if the spec asks for what there is not, ConfigError if max_model_len is more than it can do.
    """
    positions = spec.entry.positions
    if positions and max_model_len > positions.count:
        raise ConfigError(
            f"max_model_len={max_model_len}: the model has learned embeddings for {positions.count} positions; "
            f"use at most {positions.count}"
        )
    return Builder(spec, placement, max_model_len, pooler).transformer()


@dataclass(slots=True)
class Builder:
    """Makes the modules of one model."""

    spec: TransformerSpec
    placement: Placement
    max_model_len: int
    pooler: Pooler | None
    """The head of a model that pools; else one is made that generates."""
    rotaries: dict[Rope, Rotary | SpatialRotary] = field(default_factory=dict)
    """Layers with the same rope share one table."""
    biases: dict[tuple[Buckets, str], RelativeBias] = field(default_factory=dict)
    """Layers with the same learned bias share it."""
    shared: dict[tuple[str, ...], nn.Module] = field(default_factory=dict)
    """What was made of a tensor, by its name: layers whose tensors have one name are one (albert)."""
    num_caches: int = 0
    """How many layers with a cache there are so far, in call order"""
    kept: Kept | None = None
    """The entry, where layers read it again"""

    def transformer(self) -> Transformer:
        spec = self.spec
        tokens = self.tokens()
        ignored = spec.ignored_names
        is_own = self.pooler is None and (spec.head.own_or_tied or not spec.tied)
        if "head" in spec.names and not is_own:  # some store the table a second time
            ignored += (f"{spec.names['head']}.{'weight' if self.pooler is None else '*'}",)
        encoder = None if spec.encoder is None else build_encoder(self, spec.encoder)
        entry = self.entry(tokens)
        if any(layer.assistant for layer in spec.layers):
            entry = self.kept = Kept(entry)
        blocks = self.passed([self.block(index, layer) for index, layer in enumerate(spec.layers)])
        norm = self.norm(spec.width, spec.names["norm"]) if spec.final_norm else nn.Identity()
        if self.placement.group.size > 1:
            announce_norms(blocks, norm)
        return Transformer(
            entry,
            blocks,
            norm,
            self.head(tokens) if self.pooler is None else self.pooler,
            ignored_names=ignored,
            base_prefix=spec.base_prefix,
            encoder=encoder,
        )

    def tokens(self) -> Embedding:
        """Make the table of tokens; an encoder and its decoder may have one together."""
        name = self.spec.names["embed"]
        return self.once(partial(Embedding, self.spec.entry.vocab_size, self.embed_width, name, self.placement), name)

    @property
    def embed_width(self) -> int:
        return self.spec.entry.width or self.spec.width

    def entry(self, tokens: Embedding | None) -> nn.Module:
        """Make what the first hidden state comes from: tokens, or where there are none sounds."""
        entry, names = self.spec.entry, self.spec.names
        parts: list[nn.Module] = [build_sound_input(self) if tokens is None else TokenInput(tokens, entry.scale)]
        if entry.width and not entry.norm:
            parts = [nn.Sequential(*parts, self.project_in(bias=False))]
        if entry.positions:
            rows, width = (
                entry.positions.count + entry.positions.offset,
                self.embed_width if entry.norm else self.spec.width,
            )
            if entry.positions.waves:
                table: Embedding = Waves(rows, width, names["positions"], self.placement, entry.positions.waves)
            else:
                table = Embedding(rows, width, names["positions"], self.placement)
            parts.append(Positions(table, entry.positions.offset))
        if entry.token_types:
            parts.append(TokenTypes(entry.token_types, self.embed_width, names["token_types"], self.placement))
        whole = parts[0] if len(parts) == 1 else Sum(parts)
        if not entry.norm:
            return whole
        after = [self.norm(self.embed_width, names["embed_norm"])]
        return nn.Sequential(whole, *after, *([self.project_in(bias=True)] if entry.width else []))

    def project_in(self, bias: bool) -> Linear:
        return Linear(
            self.embed_width, [Part(self.spec.names["project_in"], self.spec.width)], self.placement, bias=bias
        )

    def head(self, tokens: Embedding) -> Head:
        spec = self.spec
        project: nn.Module = nn.Identity()
        if spec.entry.width:
            project = Linear(spec.width, [Part(spec.names["project_out"], spec.entry.width)], self.placement)
        if spec.tied and spec.head.bias_name is None:
            tied = TiedLinear(tokens, self.placement)
            if spec.head.own_or_tied:
                either = OwnOrTied(spec.names["head"], tied, self.placement)
                return Head(project, either, spec.head.softcap, spec.head.scale)
            return Head(project, tied, spec.head.softcap, spec.head.scale)
        cut = partial(functional.normalize, dim=-1) if spec.head.unit_rows else None
        name = spec.names["embed" if spec.tied else "head"]
        parts = [Part(name, spec.entry.vocab_size, cut, spec.head.bias_name)]
        vocabulary = Linear(self.embed_width, parts, self.placement, bias=spec.head.bias, shard="gathered")
        return Head(project, vocabulary, spec.head.softcap, spec.head.scale)

    def block(self, index: int, layer: LayerSpec) -> nn.Module:
        if layer.assistant is not None:
            return build_assisted(self, index, layer, layer.assistant)
        kind, roles = _BLOCKS[layer.block]
        norms = tuple(self.norm(self.spec.width, self.name(role, index)) if role else nn.Identity() for role in roles)
        if layer.mixer is None:
            assert layer.ffn is not None
            return kind(self.ffn(index, layer.ffn), norms)
        if layer.ffn is None:
            return kind(self.mixer(index, layer.mixer), norms)
        ffn = self.ffn(index, layer.ffn)
        if layer.cross is not None:
            return kind(self.mixer(index, layer.mixer), build_cross(self, index, layer.cross), ffn, norms)
        if layer.beside is not None:
            experts = build_experts(self, index, layer.beside)
            return kind(self.mixer(index, layer.mixer), nn.ModuleList((ffn, experts)), norms)
        return kind(self.mixer(index, layer.mixer), ffn, norms)

    def ffn(self, index: Index, ffn: MlpSpec | MoeSpec) -> nn.Module:
        return build_experts(self, index, ffn) if isinstance(ffn, MoeSpec) else self.mlp(index, ffn)

    def passed(self, blocks: list[nn.Module]) -> list[nn.Module]:
        """Let hidden states pass blocks, where the spec says so."""
        ways = [(skip, Way(skip.share)) for skip in self.spec.skips]
        for index in {layer for skip in self.spec.skips for layer in (skip.source, skip.target)}:
            begin = [way for skip, way in ways if skip.source == index]
            blocks[index] = Passed(blocks[index], begin, [way for skip, way in ways if skip.target == index])
        return blocks

    def mixer(self, index: Index, mixer: Mixer) -> nn.Module:
        if isinstance(mixer, AttentionSpec):
            return self.attention(index, mixer)
        if isinstance(mixer, TogetherSpec):
            return Together([self.mixer(index, one) for one in mixer.mixers])
        if self.placement.group.size > 1:
            raise ConfigError("latent attention and recurrent layers can't be shared; use tensor_parallel_size=1")
        if isinstance(mixer, LatentSpec):
            return build_latent(self, index, mixer)
        return build_recurrent(self, index, mixer)

    def next_cache(self) -> int:
        """Count one more layer that has a cache; return its place among these."""
        self.num_caches += 1
        return self.num_caches - 1

    def attention(self, index: Index, attention: AttentionSpec, qkv: nn.Module | None = None) -> Attention:
        """`qkv` is what makes q, k and v, if it isn't a matrix of this layer alone."""
        if attention.heads % attention.kv_heads:
            raise ModelError(
                f"{attention.heads} attention heads cannot share {attention.kv_heads} key-value heads evenly; "
                "check num_attention_heads and num_key_value_heads in the model's config"
            )
        if qkv is None:
            qkv = self.linear(self.spec.width, self.qkv_parts(index, attention), attention.qkv_bias, shard="rows")
        out = [self.branch_end("o", index)]
        options, learned = self.options(index, attention)
        group = self.placement.group
        heads = (
            group.share(attention.heads, "attention heads"),
            group.share(attention.kv_heads, "key-value heads"),
            attention.head_dim,
        )
        kind: Callable[..., Attention] = GatedAttention if attention.gated else Attention
        if attention.chunk is not None:
            kind = partial(ChunkedAttention, attention.chunk)
        return kind(
            self.next_cache(),
            heads,
            (qkv, self.linear(attention.heads * attention.head_dim, out, attention.out_bias, shard="width")),
            normalize=(self.head_norm("q_norm", index, attention), self.head_norm("k_norm", index, attention)),
            rotary=self.tempered(attention),
            options=options,
            learned=learned,
        )

    def options(self, index: Index, attention: AttentionSpec) -> tuple[AttentionOptions, list[nn.Module]]:
        """Return what an attention does beside its products, and the modules that hold what is learned of it."""
        options = AttentionOptions(attention.scale, attention.window, attention.softcap, causal=attention.causal)
        buckets, group = attention.position_bias, self.placement.group
        if attention.sinks:
            heads = group.share(attention.heads, "attention heads")
            name, cut = self.name("sinks", index), partial(group.cut, dim=0)
            sinks = Exact(heads, name=name, placement=self.placement, cut=cut)
            return replace(options, sinks=sinks.value), [sinks]
        if isinstance(buckets, Alibi):
            slopes = group.cut(alibi_slopes(attention.heads), 0).to(self.placement.device)
            return replace(options, alibi_slopes=slopes), []
        if buckets is None:
            return options, []
        if self.placement.group.size > 1:
            raise ConfigError("a learned position bias can't be shared among processes; use tensor_parallel_size=1")
        name = self.name("relative_bias", index)
        if (buckets, name) not in self.biases:
            self.biases[buckets, name] = RelativeBias(attention.heads, buckets, name, self.placement)
        bias = self.biases[buckets, name]
        return replace(options, bias=bias.table), [bias]

    def qkv_parts(self, index: Index, attention: AttentionSpec) -> list[Part]:
        q, kv = attention.heads * attention.head_dim, attention.kv_heads * attention.head_dim
        if attention.gated:
            q_cut, gate_cut = (partial(_cut_group, which, 1, 2, attention.head_dim) for which in range(2))
            key_value = [Part(self.name(role, index), kv) for role in ("k", "v")]
            return [Part(self.name("q", index), q, q_cut), *key_value, Part(self.name("q", index), q, gate_cut)]
        if attention.layout == "split":
            parts = [self.part(role, index, rows) for role, rows in (("q", q), ("k", kv), ("v", kv))]
            return parts if attention.k_bias else [parts[0], replace(parts[1], bias=""), parts[2]]
        if attention.layout == "q_kv":
            pair = [partial(_cut_group, which, 1, 2, attention.head_dim) for which in range(2)]
            key_value = [Part(self.name("kv", index), kv, cut) for cut in pair]
            return [Part(self.name("q", index), q), *key_value]
        name = self.name("qkv", index)
        if attention.layout == "per_group":
            group, sizes = attention.heads // attention.kv_heads, (q, kv, kv)
            return [
                Part(name, size, partial(_cut_group, first, count, group + 2, attention.head_dim))
                for first, count, size in zip((0, group, group + 1), (group, 1, 1), sizes, strict=True)
            ]
        if attention.layout == "concat":
            return [Part(name, q + 2 * kv)] if self.placement.group.size == 1 else split(name, (q, kv, kv))
        return [Part(name, q, partial(_cut_third, which, attention.head_dim)) for which in range(3)]

    def mlp(self, index: Index, mlp: MlpSpec) -> nn.Module:
        self.check_activation(mlp.activation)
        parts = self.up_parts(index, mlp)
        up = self.linear(self.spec.width, parts, mlp.up_bias, activation=mlp.activation, gated=mlp.gated, shard="rows")
        down = [self.branch_end("down", index)]
        return Mlp(up, self.linear(mlp.width, down, mlp.down_bias, shard="width"))

    def branch_end(self, role: str, index: Index) -> Part:
        """Return the part of a branch's last product, which scales the branch."""
        scale = self.spec.branch_scale
        return self.part(role, index, self.spec.width, None if scale == 1.0 else partial(torch.mul, scale))

    def part(self, role: str, index: Index, rows: int, cut: Callable[[Tensor], Tensor] | None = None) -> Part:
        """Return the part that is all of a role's tensor, scaled as the spec says."""
        by = self.spec.scales.get(role)
        return Part(self.name(role, index), rows, cut if by is None else scaled(cut, by))

    def up_parts(self, index: Index, mlp: MlpSpec) -> list[Part]:
        if not mlp.gated:
            return [self.part("up", index, mlp.width)]
        if mlp.layout == "split":
            return [self.part(role, index, mlp.width) for role in ("gate", "up")]
        name = self.name("gate_up", index)
        if mlp.layout == "gate_up":
            return [Part(name, 2 * mlp.width)] if self.placement.group.size == 1 else split(name, 2 * (mlp.width,))
        return [Part(name, mlp.width, partial(_cut_half, which)) for which in (1, 0)]

    def linear(self, width: int, parts: list[Part], bias: bool, **options: Any) -> Linear:
        transposed = self.spec.transposed
        make = partial(Linear, width, parts, self.placement, bias=bias, transposed=transposed, **options)
        return self.once(make, *(part.name for part in parts))

    def norm(self, width: int, name: str) -> nn.Module:
        norm = self.spec.norm
        if norm.kind == "rms":
            return self.once(partial(RmsNorm, width, name, self.placement, norm.eps, norm.offset), name)
        make = partial(
            LayerNorm, width, name, self.placement, norm.eps, norm.offset, affine=norm.affine, bias=norm.bias
        )
        return self.once(make, name)

    def once(self, make: Callable[[], Module], *names: str) -> Module:
        if names not in self.shared:
            self.shared[names] = make()
        return cast("Module", self.shared[names])

    def head_norm(self, role: str, index: Index, attention: AttentionSpec) -> nn.Module:
        if attention.head_norm == "head":
            return self.norm(attention.head_dim, self.name(role, index))
        if attention.head_norm == "":
            return nn.Identity()
        if attention.head_norm == "plain":
            return PlainRmsNorm(attention.head_dim, self.placement, self.spec.norm.eps)
        if self.placement.group.size > 1:
            raise ConfigError("a norm over all heads can't be shared among processes; use tensor_parallel_size=1")
        count = attention.heads if role == "q_norm" else attention.kv_heads
        return HeadsNorm(self.norm(count * attention.head_dim, self.name(role, index)))

    def tempered(self, attention: AttentionSpec) -> nn.Module:
        rotary = self.rotary(attention.rope)
        if attention.tempering is None:
            return rotary
        return TemperedRotary(rotary, attention.tempering, self.max_model_len, self.placement.device)

    def rotary(self, rope: Rope | None) -> nn.Module:
        if rope is None:
            return NoRotary()
        if rope not in self.rotaries:
            kind = SpatialRotary if rope.sections else Rotary
            self.rotaries[rope] = kind(rope, self.max_model_len, self.placement.device)
        return self.rotaries[rope]

    def name(self, role: str, index: Index, expert: int = 0) -> str:
        return self.spec.names[role].format(i=index, x=expert)

    def check_activation(self, name: str) -> None:
        if name not in ops.ACTIVATIONS:
            known = ", ".join(ops.ACTIVATIONS)
            hint = did_you_mean(name, ops.ACTIVATIONS)
            raise ModelError(f"activation {name!r} is not supported; use one of {known}.{hint}")


def _cut_third(which: int, head_dim: int, stored: Tensor) -> Tensor:
    """Take q, k or v out of a tensor that holds q, k and v of the first head, then of the second …

    [H 3 E, D] -> [H E, D], or without D
    """
    return stored.unflatten(0, (-1, 3, head_dim))[:, which].flatten(0, 1)


def _cut_group(first: int, count: int, group: int, head_dim: int, stored: Tensor) -> Tensor:
    """Take heads [first, first + count) of each group of `group` heads.  [N, D] or [N]"""
    return stored.unflatten(0, (-1, group, head_dim))[:, first : first + count].flatten(0, 2)


def _cut_half(which: int, stored: Tensor) -> Tensor:
    """Take the first or the second half of a tensor's rows."""
    return stored.chunk(2)[which]
