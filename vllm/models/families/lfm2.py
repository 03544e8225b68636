"""LFM2: short convolutions, with attention between them, and in some models experts behind the first layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vllm.models.families.llama import NAMES, attention_of, decoder_of
from vllm.models.spec import LayerSpec, MlpSpec, MoeSpec, NormSpec, TransformerSpec
from vllm.models.spec_recurrent import ShortConvSpec

_LAYER = "model.layers.{i}"
LFM2_NAMES: Mapping[str, str] = {
    **NAMES,
    "norm": "model.embedding_norm",
    "norm1": f"{_LAYER}.operator_norm",
    "norm2": f"{_LAYER}.ffn_norm",
    "o": f"{_LAYER}.self_attn.out_proj",
    "q_norm": f"{_LAYER}.self_attn.q_layernorm",
    "k_norm": f"{_LAYER}.self_attn.k_layernorm",
    "enter": f"{_LAYER}.conv.in_proj",
    "conv": f"{_LAYER}.conv.conv",
    "leave": f"{_LAYER}.conv.out_proj",
    "gate": f"{_LAYER}.feed_forward.w1",
    "up": f"{_LAYER}.feed_forward.w3",
    "down": f"{_LAYER}.feed_forward.w2",
    "router": f"{_LAYER}.feed_forward.gate",
    "correction": f"{_LAYER}.feed_forward.expert_bias",
    "expert_gate": f"{_LAYER}.feed_forward.experts.{{x}}.w1",
    "expert_up": f"{_LAYER}.feed_forward.experts.{{x}}.w3",
    "expert_down": f"{_LAYER}.feed_forward.experts.{{x}}.w2",
}


def lfm2(config: Any) -> TransformerSpec:
    """A convolution or attention in each layer, and a gated feed-forward."""
    mlp = MlpSpec(_ffn_width(config), "silu")
    return _decoder(config, lambda index: mlp)


def lfm2_moe(config: Any) -> TransformerSpec:
    """With experts, weighed by sigmoids, in place of most feed-forwards."""
    mlp = MlpSpec(config.intermediate_size, "silu")
    moe = MoeSpec(
        config.num_experts,
        config.num_experts_per_tok,
        config.moe_intermediate_size,
        "silu",
        config.norm_topk_prob,
        scores="sigmoid",
        corrected=config.use_expert_bias,
        scale=config.routed_scaling_factor,
    )
    return _decoder(config, lambda index: mlp if index < config.num_dense_layers else moe)


def _decoder(config: Any, ffn: Callable[[int], MlpSpec | MoeSpec]) -> TransformerSpec:
    attention, conv = attention_of(config, head_norm="head"), ShortConvSpec(config.conv_L_cache, config.conv_bias)
    return decoder_of(
        config,
        lambda index: LayerSpec(attention if config.layer_types[index] == "full_attention" else conv, ffn(index)),
        NormSpec("rms", config.norm_eps),
        names=LFM2_NAMES,
    )


def _ffn_width(config: Any) -> int:
    width: int = config.intermediate_size
    if not config.block_auto_adjust_ff_dim:
        return width
    width = 2 * width // 3
    if config.block_ffn_dim_multiplier is None:
        return width
    multiple = config.block_multiple_of
    return multiple * -(-int(config.block_ffn_dim_multiplier * width) // multiple)
