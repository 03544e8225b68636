"""T5 and its kin: encoders with decoders, whose attention knows distances by a learned bias and is not scaled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from vllm.layers.position_bias import Buckets
from vllm.models.spec import AttentionSpec, EntrySpec, HeadSpec, LayerSpec, MlpSpec, NormSpec, TransformerSpec

IGNORED = (
    "encoder.embed_tokens.weight",
    "decoder.embed_tokens.weight",
    "*.EncDecAttention.relative_attention_bias.weight",
)
"""What checkpoints hold a second time, or needlessly."""
_ATTENTION_NAMES: dict[str, str] = {
    "norm1": "0.layer_norm",
    "norm_cross": "1.layer_norm",
    **{role: f"0.SelfAttention.{role}" for role in "qkvo"},
    **{f"cross_{role}": f"1.EncDecAttention.{role}" for role in "qkvo"},
}
_FFN_NAMES: dict[str, str] = {"norm2": "layer_norm", "down": "DenseReluDense.wo"}

_Side = Literal["encoder", "decoder"]


def t5(config: Any) -> TransformerSpec:
    """T5, flan and mt5: the first layer's bias is every layer's."""
    return _both(config, "0")


def umt5(config: Any) -> TransformerSpec:
    """UMT5: each layer has a bias of its own."""
    return _both(config, "{i}")


def _both(config: Any, bias_layer: str) -> TransformerSpec:
    scaled = getattr(config, "scale_decoder_outputs", False)
    return replace(
        _side(config, "decoder", bias_layer),
        head=HeadSpec(scale=config.d_model**-0.5 if scaled else 1.0, own_or_tied=True),
        base_prefix="",
        ignored_names=IGNORED,
        encoder=_side(config, "encoder", bias_layer),
    )


def _side(config: Any, side: _Side, bias_layer: str) -> TransformerSpec:
    count = config.num_layers if side == "encoder" else config.num_decoder_layers
    entry, norm = EntrySpec(config.vocab_size), NormSpec("rms", config.layer_norm_epsilon)
    names = _names(side, bias_layer, config.is_gated_act)
    return TransformerSpec(entry, config.d_model, (_layer(config, side),) * count, norm, names)


def _layer(config: Any, side: _Side) -> LayerSpec:
    encodes = side == "encoder"
    distances = (config.relative_attention_num_buckets, config.relative_attention_max_distance)
    plain = AttentionSpec(config.num_heads, config.num_heads, config.d_kv, scale=1.0, causal=False)
    attention = replace(plain, causal=not encodes, position_bias=Buckets(*distances, both_ways=encodes))
    mlp = MlpSpec(config.d_ff, config.dense_act_fn, gated=config.is_gated_act)
    return LayerSpec(attention, mlp) if encodes else LayerSpec(attention, mlp, "pre_cross", cross=plain)


def _names(side: _Side, bias_layer: str, gated: bool) -> Mapping[str, str]:
    """Return the names of one side; `bias_layer` is the layer, or {i}, that the bias for distances is written in."""
    ffn = {"gate": "DenseReluDense.wi_0", "up": "DenseReluDense.wi_1"} if gated else {"up": "DenseReluDense.wi"}
    number = 1 if side == "encoder" else 2  # of the part that is the feed-forward
    parts = _ATTENTION_NAMES | {role: f"{number}.{name}" for role, name in (ffn | _FFN_NAMES).items()}
    bias = f"{side}.block.{bias_layer}.layer.0.SelfAttention.relative_attention_bias"
    outer = {"embed": "shared", "head": "lm_head", "norm": f"{side}.final_layer_norm", "relative_bias": bias}
    return outer | {role: f"{side}.block.{{i}}.layer.{name}" for role, name in parts.items()}
