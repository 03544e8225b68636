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
from vllm.layers.attention import Attention
from vllm.layers.blocks import (
    AfterBranch,
    Beside,
    FeedForward,
    Normed,
    OnNorm,
    Parallel,
    PostNorm,
    PostNormCross,
    PreNorm,
    PreNormCross,
    Sandwich,
    SandwichBeside,
    Single,
    Together,
    Twice,
    announce_norms,
    spend_sums,
)
from vllm.layers.embedding import (
    Appended,
    Embedding,
    Head,
    MaskedHead,
    OwnOrTied,
    Positions,
    Sum,
    TiedLinear,
    TokenInput,
    TokenTypes,
    Waves,
)
from vllm.layers.linear import Linear, Part, scaled, split
from vllm.layers.mlp import ClampedGate, Mlp, PolyGate, SparseGate, Xielu, softplus_above
from vllm.layers.norm import GroupedRmsNorm, LayerNorm, NamedRmsNorm, RmsNorm
from vllm.layers.per_layer import PerLayerInput, Reading, Scaled
from vllm.layers.placement import Placement
from vllm.layers.pooler import Pooler
from vllm.layers.position_bias import Alibi, Buckets, RelativeBias
from vllm.layers.recurrent import Exact
from vllm.layers.rotary import NoRotary, Rope, Rotary, SpatialRotary
from vllm.layers.skip import Passed, Way
from vllm.layers.transformer import Transformer
from vllm.models.build_assistant import build_assisted
from vllm.models.build_attention import build_attention, build_recalling, build_sharing
from vllm.models.build_cross import build_cross, build_encoder, build_sound_input
from vllm.models.build_experts import build_experts
from vllm.models.build_lanes import build_lane, build_lanes_input, build_lanes_output
from vllm.models.build_latent import build_latent
from vllm.models.build_ngram import build_ngram_input
from vllm.models.build_per_layer import build_per_layer_input, build_reader
from vllm.models.build_pictures import build_picture_block
from vllm.models.build_recurrent import build_recurrent
from vllm.models.spec import (
    AttentionSpec,
    LatentSpec,
    LayerSpec,
    Mixer,
    MlpSpec,
    MoeSpec,
    RecallSpec,
    TogetherSpec,
    TransformerSpec,
)

Module = TypeVar("Module", bound=nn.Module)
Index = int | str | tuple[int, int]
"""A layer's number, or what the names of its tensors have instead; of a layer that is two, also which it is"""

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
    "on_norm": (OnNorm, ("norm1", "norm2")),
    "beside": (Beside, ("norm1", "norm2", "norm_beside")),
    "sandwich_beside": (
        SandwichBeside,
        ("norm1", "norm1_after", "norm2", "norm_ffn_after", "norm_beside", "norm_beside_after", "norm2_after"),
    ),
    "pre_cross": (PreNormCross, ("norm1", "norm_cross", "norm2")),
    "post_cross": (PostNormCross, ("norm1", "norm_cross", "norm2")),
}
"""Block → its class, and the roles of its norms in the order it takes them; "" where there is none."""

_CUTS: dict[str, Callable[[Tensor], Tensor] | None] = {
    "": None,
    "rows": partial(functional.normalize, dim=-1),
    "columns": partial(functional.normalize, dim=0),
}
"""What of a head's matrix is brought to length 1 → how"""


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
    root_biases: dict[tuple[Alibi, int], Tensor] = field(default_factory=dict)
    """So do those with the same bias for roots of distances, by the number of their heads."""
    shared: dict[tuple[str, ...], nn.Module] = field(default_factory=dict)
    """What was made of a tensor, by its name: layers whose tensors have one name are one (albert)."""
    num_caches: int = 0
    """How many layers with a cache there are so far, in call order"""
    kept: Kept | None = None
    """The entry, where layers read it again"""
    per_layer: PerLayerInput | None = None
    """The entry, where it has something for each layer"""
    attentions: dict[Index, Attention] = field(default_factory=dict)
    """Those that have keys and values of their own, by layer"""

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
        if spec.entry.per_layer is not None:
            entry = self.per_layer = build_per_layer_input(self, entry, spec.entry.per_layer)
        norm = self.norm(spec.width, spec.names["norm"], "norm") if spec.final_norm else nn.Identity()
        if spec.lanes is not None:
            entry, norm = build_lanes_input(self, entry, spec.lanes), build_lanes_output(self, norm, spec.lanes)
        blocks = self.passed([self.layer(index, layer) for index, layer in enumerate(spec.layers)])
        if self.placement.group.size > 1:
            announce_norms(blocks, norm)
        spend_sums(blocks)
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
        entry, name, more = self.spec.entry, self.spec.names["embed"], self.spec.names.get("embed_unwritten")
        if more is not None:
            rows = (entry.vocab_size, entry.unwritten)
            return self.once(partial(Appended, rows, self.embed_width, (name, more), self.placement), name)
        count = entry.vocab_size + entry.unwritten
        return self.once(partial(Embedding, count, self.embed_width, name, self.placement), name)

    @property
    def embed_width(self) -> int:
        return self.spec.entry.width or self.spec.width

    def entry(self, tokens: Embedding | None) -> nn.Module:
        """Make what the first hidden state comes from: tokens, or where there are none sounds."""
        entry, names = self.spec.entry, self.spec.names
        parts: list[nn.Module] = [build_sound_input(self) if tokens is None else TokenInput(tokens, entry.scale)]
        if entry.ngrams is not None:
            assert tokens is not None
            parts = [build_ngram_input(self, tokens, entry.ngrams)]
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
        kind = partial(MaskedHead, spec.head.never, self.placement.device) if spec.head.never else Head
        return kind(project, self.vocabulary(tokens), spec.head.softcap, spec.head.scale)

    def vocabulary(self, tokens: Embedding) -> nn.Module:
        """Make the product that ends in logits."""
        spec = self.spec
        if spec.tied and spec.head.bias_name is None:
            tied = TiedLinear(tokens, self.placement)
            return OwnOrTied(spec.names["head"], tied, self.placement) if spec.head.own_or_tied else tied
        cut = _CUTS[spec.head.unit]
        name = spec.names["embed" if spec.tied else "head"]
        parts = [Part(name, spec.entry.vocab_size, cut, spec.head.bias_name)]
        return Linear(self.embed_width, parts, self.placement, bias=spec.head.bias, shard="gathered")

    def layer(self, index: int, layer: LayerSpec) -> nn.Module:
        if layer.normed:
            block = self.layer(index, replace(layer, normed=False))
            return Normed(block, self.norm(self.spec.width, self.spec.names["norm"], "norm"))
        if self.spec.lanes is not None:
            return build_lane(self, index, layer, self.spec.lanes)
        block = self.block(index, layer)
        if (per_layer := self.spec.entry.per_layer) is not None:
            block = Reading(block, build_reader(self, index, per_layer))
        if not layer.scaled:
            return block
        return Scaled(block, Exact(1, name=self.name("layer_scale", index), placement=self.placement))

    def block(self, index: int, layer: LayerSpec) -> nn.Module:
        if layer.assistant is not None:
            return build_assisted(self, index, layer, layer.assistant)
        if layer.block == "pictures":
            return build_picture_block(self, index, layer)
        if layer.block == "twice":
            return self.twice(index, layer)
        kind, roles = _BLOCKS[layer.block]
        norms = tuple(
            self.norm(self.spec.width, self.name(role, index), role) if role else nn.Identity() for role in roles
        )
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
        if layer.shares is not None:
            return kind(self.mixer(index, layer.mixer), ffn, norms, layer.shares)
        return kind(self.mixer(index, layer.mixer), ffn, norms)

    def twice(self, index: int, layer: LayerSpec) -> Twice:
        """Make a layer that is two."""
        assert layer.mixer is not None and layer.ffn is not None and layer.beside is not None
        halves, width = [(index, half) for half in (0, 1)], self.spec.width
        return Twice(
            nn.ModuleList(self.mixer(half, layer.mixer) for half in halves),
            nn.ModuleList(self.ffn(half, layer.ffn) for half in halves),
            build_experts(self, halves[0], layer.beside),
            [self.norm(width, self.name(role, half), role) for half in halves for role in ("norm1", "norm2")],
        )

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
            if mixer.shares_cache_of is not None:
                return build_sharing(self, index, mixer, self.attentions[mixer.shares_cache_of])
            self.attentions[index] = attention = build_attention(self, index, mixer)
            return attention
        if isinstance(mixer, RecallSpec):
            return build_recalling(self, index, mixer.attention, self.attentions[mixer.recalled])
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

    def mlp(self, index: Index, mlp: MlpSpec) -> nn.Module:
        up, down = self.up(index, mlp), [self.branch_end("down", index)]
        return Mlp(up, self.linear(mlp.width, down, mlp.down_bias, shard="width"))

    def up(self, index: Index, mlp: MlpSpec) -> nn.Module:
        """Make what a feed-forward's last product reads."""
        parts = self.up_parts(index, mlp)
        if mlp.poly_eps is not None:
            return self.poly_gate(index, parts, mlp.poly_eps)
        if mlp.activation == "xielu":
            return self.xielu(index, parts)
        self.check_activation(mlp.activation)
        if mlp.sparsity:
            return SparseGate(self.linear(self.spec.width, parts, mlp.up_bias), mlp.activation, mlp.sparsity)
        if mlp.clamp is not None:
            product = self.linear(self.spec.width, parts, mlp.up_bias, shard="rows")
            return ClampedGate(product, mlp.activation, mlp.clamp)
        return self.linear(
            self.spec.width, parts, mlp.up_bias, activation=mlp.activation, gated=mlp.gated, shard="rows"
        )

    def xielu(self, index: Index, parts: list[Part]) -> Xielu:
        name = self.name("xielu", index)
        above, below = (
            Exact(1, name=f"{name}.alpha_{end}", placement=self.placement, cut=partial(softplus_above, least))
            for end, least in (("p", 0.0), ("n", 0.5))
        )
        return Xielu(self.linear(self.spec.width, parts, False, shard="rows"), above, below)

    def poly_gate(self, index: Index, parts: list[Part], eps: float) -> PolyGate:
        if self.placement.group.size > 1:
            raise ConfigError("gates that are normalised can't be shared among processes; use tensor_parallel_size=1")
        name = self.name("poly", index)
        weights, bias = (
            Exact(size, name=f"{name}.{end}", placement=self.placement) for size, end in ((3, "weight"), (1, "bias"))
        )
        return PolyGate(self.linear(self.spec.width, parts, False), weights, bias, eps)

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
        if mlp.layout == "turns":
            return [Part(name, mlp.width, partial(_cut_every_other, which)) for which in (0, 1)]
        if mlp.layout == "gate_up":
            return [Part(name, 2 * mlp.width)] if self.placement.group.size == 1 else split(name, 2 * (mlp.width,))
        return [Part(name, mlp.width, partial(_cut_half, which)) for which in (1, 0)]

    def linear(self, width: int, parts: list[Part], bias: bool, **options: Any) -> Linear:
        transposed = self.spec.transposed
        make = partial(Linear, width, parts, self.placement, bias=bias, transposed=transposed, **options)
        return self.once(make, *(part.name for part in parts))

    def norm(self, width: int, name: str, role: str = "") -> nn.Module:
        norm, shift = self.spec.norm, self.spec.norm_shifts.get(role, 0.0)
        if norm.groups > 1 and width == self.spec.width:
            return self.once(partial(GroupedRmsNorm, width, norm.groups, name, self.placement, norm.eps), name)
        if norm.kind == "rms":
            named = norm.ending != "weight"
            kind, whole = (NamedRmsNorm, f"{name}.{norm.ending}") if named else (RmsNorm, name)
            return self.once(partial(kind, width, whole, self.placement, norm.eps, norm.offset, shift), name)
        make = partial(
            LayerNorm, width, name, self.placement, norm.eps, norm.offset, affine=norm.affine, bias=norm.bias
        )
        return self.once(make, name)

    def once(self, make: Callable[[], Module], *names: str) -> Module:
        if names not in self.shared:
            self.shared[names] = make()
        return cast("Module", self.shared[names])

    def rotary(self, rope: Rope | None) -> nn.Module:
        if rope is None:
            return NoRotary()
        if rope not in self.rotaries:
            kind = SpatialRotary if rope.sections else Rotary
            self.rotaries[rope] = kind(rope, self.max_model_len, self.placement.device)
        return self.rotaries[rope]

    def name(self, role: str, index: Index, expert: int = 0) -> str:
        if self.spec.stored_layers is not None and isinstance(index, int):
            index %= self.spec.stored_layers
        return self.spec.names[role].format(i=index, x=expert)

    def check_activation(self, name: str) -> None:
        if name not in ops.ACTIVATIONS:
            known = ", ".join(ops.ACTIVATIONS)
            hint = did_you_mean(name, ops.ACTIVATIONS)
            raise ModelError(f"activation {name!r} is not supported; use one of {known}.{hint}")


def _cut_half(which: int, stored: Tensor) -> Tensor:
    """Take the first or the second half of a tensor's rows."""
    return stored.chunk(2)[which]


def _cut_every_other(first: int, stored: Tensor) -> Tensor:
    """Take every other row of a tensor."""
    return stored[first::2]
