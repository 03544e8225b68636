"""T5 and its kin: encoders with decoders, whose attention knows distances by a learned bias and is not scaled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from vllm.layers.position_bias import Buckets
from vllm.models.spec import AttentionSpec, EntrySpec, HeadSpec, LayerSpec, MlpSpec, NormSpec, TransformerSpec

IGNORED = (
    "encoder.embed_tokens.weight",
    "decoder.embed_tokens.weight",
    "*.EncDecAttention.relative_attention_bias.weight",
)
"""What checkpoints hold a second time, or needlessly."""


def _names(side: Literal["encoder", "decoder"], bias_layer: str, gated: bool) -> Mapping[str, str]:
    layer = f"{side}.block.{{i}}.layer"
    ffn = f"{layer}.{1 if side == 'encoder' else 2}"
    names = {
        "embed": "shared",
        "head": "lm_head",
        "norm": f"{side}.final_layer_norm",
        "relative_bias": f"{side}.block.{bias_layer}.layer.0.SelfAttention.relative_attention_bias",
        "norm1": f"{layer}.0.layer_norm",
        "norm_cross": f"{layer}.1.layer_norm",
        "norm2": f"{ffn}.layer_norm",
        "down": f"{ffn}.DenseReluDense.wo",
        **{role: f"{layer}.0.SelfAttention.{role}" for role in "qkvo"},
        **{f"cross_{role}": f"{layer}.1.EncDecAttention.{role}" for role in "qkvo"},
    }
    if gated:
        return names | {"gate": f"{ffn}.DenseReluDense.wi_0", "up": f"{ffn}.DenseReluDense.wi_1"}
    return names | {"up": f"{ffn}.DenseReluDense.wi"}


def t5(config: Any) -> TransformerSpec:
    """T5, flan and mt5: the first layer's bias is every layer's."""
    return _both(config, "0")


def umt5(config: Any) -> TransformerSpec:
    """UMT5: each layer has a bias of its own."""
    return _both(config, "{i}")


def _both(config: Any, bias_layer: str) -> TransformerSpec:
    entry, norm = EntrySpec(config.vocab_size), NormSpec("rms", config.layer_norm_epsilon)
    encoder = TransformerSpec(
        entry,
        config.d_model,
        _layers(config, "encoder"),
        norm,
        _names("encoder", bias_layer, config.is_gated_act),
    )
    scaled = getattr(config, "scale_decoder_outputs", False)
    return TransformerSpec(
        entry,
        config.d_model,
        _layers(config, "decoder"),
        norm,
        _names("decoder", bias_layer, config.is_gated_act),
        head=HeadSpec(scale=config.d_model**-0.5 if scaled else 1.0, own_or_tied=True),
        base_prefix="",
        ignored_names=IGNORED,
        encoder=encoder,
    )


def _layers(config: Any, side: Literal["encoder", "decoder"]) -> tuple[LayerSpec, ...]:
    heads = (config.num_heads, config.num_heads, config.d_kv, 1.0)
    is_encoder = side == "encoder"
    buckets = Buckets(
        config.relative_attention_num_buckets, config.relative_attention_max_distance, both_ways=is_encoder
    )
    attention = AttentionSpec(*heads, causal=not is_encoder, position_bias=buckets)
    mlp = MlpSpec(config.d_ff, config.dense_act_fn, gated=config.is_gated_act)
    if is_encoder:
        return (LayerSpec(attention, mlp),) * config.num_layers
    return (
        LayerSpec(attention, mlp, "pre_cross", cross=AttentionSpec(*heads, causal=False)),
    ) * config.num_decoder_layers
