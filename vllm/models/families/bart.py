"""Encoders with decoders as the first transformer was: bart and what came of it, and whisper, which hears."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vllm.errors import ModelError
from vllm.layers.cross import Hearing
from vllm.models.spec import (
    AttentionSpec,
    EntrySpec,
    HeadSpec,
    LayerSpec,
    MlpSpec,
    NormSpec,
    PositionsSpec,
    TransformerSpec,
)


def _names(side: str, table: str) -> Mapping[str, str]:
    layer = f"model.{side}.layers.{{i}}"
    names = {
        "embed": table,
        "head": "lm_head",
        "positions": f"model.{side}.embed_positions",
        "embed_norm": f"model.{side}.layernorm_embedding",
        "norm": f"model.{side}.layer_norm",
        "norm1": f"{layer}.self_attn_layer_norm",
        "norm2": f"{layer}.final_layer_norm",
        "norm_cross": f"{layer}.encoder_attn_layer_norm",
        "up": f"{layer}.fc1",
        "down": f"{layer}.fc2",
    }
    for role, projection in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("o", "out_proj")):
        names |= {role: f"{layer}.self_attn.{projection}", f"cross_{role}": f"{layer}.encoder_attn.{projection}"}
    return names


WHISPER_NAMES: Mapping[str, str] = {"conv1": "model.encoder.conv1", "conv2": "model.encoder.conv2"}
IGNORED: tuple[str, ...] = (
    "model.encoder.embed_tokens.weight",
    "model.decoder.embed_tokens.weight",
    "*.embed_positions.weights",
    "*.version",
    "lm_head.weight",
)
"""What checkpoints hold a second time, or needlessly."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """In what one differs from another."""

    block: Literal["pre", "post"]
    """A branch's norm is before it, and one follows the last layer; or it is behind it"""
    embed_norm: bool = False
    offset: int = 0
    """The row of position 0"""
    waves: Literal["", "vaswani", "fairseq"] = ""
    bias: str | None = "final_logits_bias"
    """Of the logits"""


def bart(config: Any) -> TransformerSpec:
    """Bart and plbart."""
    return _both(config, _Kind("post", embed_norm=True, offset=2))


def mbart(config: Any) -> TransformerSpec:
    return _both(config, _Kind("pre", embed_norm=True, offset=2))


def blenderbot(config: Any) -> TransformerSpec:
    return _both(config, _Kind("pre"))


def pegasus(config: Any) -> TransformerSpec:
    return _both(config, _Kind("pre", waves="vaswani"))


def marian(config: Any) -> TransformerSpec:
    """Marian; a pair of languages may have a table each."""
    return _both(config, _Kind("post", waves="vaswani"))


def m2m_100(config: Any) -> TransformerSpec:
    """M2M-100 and nllb."""
    return _both(config, _Kind("pre", waves="fairseq", offset=2, bias=None))


def _both(config: Any, kind: _Kind) -> TransformerSpec:
    separate = not getattr(config, "share_encoder_decoder_embeddings", True)
    tables = [f"model.{side}.embed_tokens" if separate else "model.shared" for side in ("encoder", "decoder")]
    target_size = getattr(config, "decoder_vocab_size", None) if separate else None
    if target_size not in (None, config.vocab_size):
        raise ModelError(
            f"decoder_vocab_size={target_size}: a decoder whose vocabulary is of another size than its encoder's "
            f"({config.vocab_size}) is not supported"
        )
    scale = math.sqrt(config.d_model) if config.scale_embedding else 1.0
    positions = PositionsSpec(config.max_position_embeddings, kind.offset, kind.waves)
    ignored = IGNORED[2:] if separate else IGNORED
    entry = EntrySpec(config.vocab_size, scale, positions=positions, norm=kind.embed_norm)
    encoder = TransformerSpec(
        entry,
        config.d_model,
        _layers(config, "encoder", kind),
        NormSpec("layer", 1e-5),
        _names("encoder", tables[0]),
        final_norm=kind.block == "pre",
    )
    return TransformerSpec(
        entry,
        config.d_model,
        _layers(config, "decoder", kind),
        NormSpec("layer", 1e-5),
        _names("decoder", tables[1]),
        final_norm=kind.block == "pre",
        head=HeadSpec(bias=kind.bias is not None, bias_name=kind.bias),
        ignored_names=ignored,
        encoder=encoder,
    )


def whisper(config: Any) -> TransformerSpec:
    """Whisper: an encoder of sounds, whose positions are stored though they are waves."""
    kind = _Kind("pre")
    hearing = Hearing(config.num_mel_bins, config.activation_function)
    positions = PositionsSpec(config.max_source_positions)
    encoder = TransformerSpec(
        EntrySpec(0, positions=positions, hearing=hearing),
        config.d_model,
        _layers(config, "encoder", kind, k_bias=False),
        NormSpec("layer", 1e-5),
        {**_names("encoder", ""), **WHISPER_NAMES},
    )
    return TransformerSpec(
        EntrySpec(
            config.vocab_size,
            math.sqrt(config.d_model) if config.scale_embedding else 1.0,
            positions=PositionsSpec(config.max_target_positions),
        ),
        config.d_model,
        _layers(config, "decoder", kind, k_bias=False),
        NormSpec("layer", 1e-5),
        {**_names("decoder", "model.decoder.embed_tokens"), "head": "proj_out"},
        encoder=encoder,
    )


def _layers(
    config: Any, side: Literal["encoder", "decoder"], kind: _Kind, k_bias: bool = True
) -> tuple[LayerSpec, ...]:
    heads = getattr(config, f"{side}_attention_heads")
    head_dim = config.d_model // heads

    def attention(causal: bool) -> AttentionSpec:
        return AttentionSpec(
            *(heads, heads, head_dim, head_dim**-0.5), causal=causal, qkv_bias=True, k_bias=k_bias, out_bias=True
        )

    width = getattr(config, f"{side}_ffn_dim")
    mlp = MlpSpec(width, config.activation_function, gated=False, up_bias=True, down_bias=True)
    if side == "encoder":
        layer = LayerSpec(attention(causal=False), mlp, kind.block)
    else:
        block: Literal["pre_cross", "post_cross"] = "pre_cross" if kind.block == "pre" else "post_cross"
        layer = LayerSpec(attention(causal=True), mlp, block, cross=attention(causal=False))
    return (layer,) * getattr(config, f"{side}_layers")
