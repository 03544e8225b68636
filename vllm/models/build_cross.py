"""From specs to the modules of an encoder with a decoder."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor, nn

from vllm.errors import ConfigError
from vllm.kv_cache.spec import Cross
from vllm.layers.cross import CrossAttention, Encoder, SoundInput
from vllm.layers.linear import Linear, Part
from vllm.models.spec import AttentionSpec, TransformerSpec
from vllm.ops.attention import AttentionOptions

if TYPE_CHECKING:
    from vllm.models.build import Builder


def build_encoder(decoder: Builder, spec: TransformerSpec) -> Encoder:
    """Make what reads sources for a decoder.  Raises ConfigError where it can't be shared."""
    if decoder.placement.group.size > 1:
        raise ConfigError("an encoder with a decoder can't be shared among processes; use tensor_parallel_size=1")
    longest = longest_source(spec, decoder.max_model_len)
    builder = replace(decoder, spec=spec, max_model_len=longest, rotaries={}, biases={}, num_caches=0)
    tokens = None if spec.entry.hearing else builder.tokens()
    blocks = [builder.block(index, layer) for index, layer in enumerate(spec.layers)]
    norm = builder.norm(spec.width, spec.names["norm"]) if spec.final_norm else nn.Identity()
    return Encoder(builder.entry(tokens), blocks, norm, longest)


def longest_source(encoder: TransformerSpec, max_model_len: int) -> int:
    """Return how many tokens an encoder reads at most: as many as it has positions, else as many as its decoder may."""
    return encoder.entry.positions.count if encoder.entry.positions else max_model_len


def build_cross(builder: Builder, index: int, cross: AttentionSpec) -> CrossAttention:
    """Make a layer's attention to the source."""
    spec, encoder = builder.spec, builder.spec.encoder
    assert encoder is not None, "a layer with cross attention, and no encoder"
    rows = cross.heads * cross.head_dim
    key_value = [
        Part(builder.name("cross_k", index), rows, bias=None if cross.k_bias else ""),
        Part(builder.name("cross_v", index), rows),
    ]
    return CrossAttention(
        builder.next_cache(),
        Cross(cross.kv_heads, cross.head_dim, cross.head_dim, longest_source(encoder, builder.max_model_len)),
        builder.linear(spec.width, [Part(builder.name("cross_q", index), rows)], cross.qkv_bias),
        builder.linear(encoder.width, key_value, cross.qkv_bias),
        builder.linear(rows, [Part(builder.name("cross_o", index), spec.width)], cross.out_bias),
        AttentionOptions(cross.scale, causal=False),
    )


def build_sound_input(builder: Builder) -> SoundInput:
    """Make the convolutions over frames of sound."""
    spec, hearing = builder.spec, builder.spec.entry.hearing
    assert hearing is not None, "an entry without tokens, and nothing to hear"
    builder.check_activation(hearing.activation)
    names, widths = (spec.names["conv1"], spec.names["conv2"]), (hearing.bands, spec.width)
    first, second = (
        Linear(
            3 * width,
            [Part(name, spec.width, _side_by_side, f"{name}.bias")],
            builder.placement.unquantized,
            bias=True,
            activation=hearing.activation,
        )
        for name, width in zip(names, widths, strict=True)
    )
    return SoundInput(first, second, hearing.bands)


def _side_by_side(stored: Tensor) -> Tensor:
    """Lay a convolution's three matrices side by side.  [N, D, 3] -> [N, 3 D]"""
    return stored.permute(0, 2, 1).flatten(1)
