"""The llama line with a mixture of experts for a feed-forward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.errors import ModelError
from vllm.models.families.llama import NAMES, attention_of, decoder_of, mlp_of, typed_layer
from vllm.models.spec import LayerSpec, MoeSpec, TransformerSpec

MIXTRAL_NAMES: Mapping[str, str] = {
    **NAMES,
    "router": "model.layers.{i}.block_sparse_moe.gate",
    "expert_gate": "model.layers.{i}.block_sparse_moe.experts.{x}.w1",
    "expert_up": "model.layers.{i}.block_sparse_moe.experts.{x}.w3",
    "expert_down": "model.layers.{i}.block_sparse_moe.experts.{x}.w2",
}

QWEN_NAMES: Mapping[str, str] = {
    **NAMES,
    "router": "model.layers.{i}.mlp.gate",
    "expert_gate": "model.layers.{i}.mlp.experts.{x}.gate_proj",
    "expert_up": "model.layers.{i}.mlp.experts.{x}.up_proj",
    "expert_down": "model.layers.{i}.mlp.experts.{x}.down_proj",
}


QWEN2_NAMES: Mapping[str, str] = {
    **QWEN_NAMES,
    "shared_gate": "model.layers.{i}.mlp.shared_expert.gate_proj",
    "shared_up": "model.layers.{i}.mlp.shared_expert.up_proj",
    "shared_down": "model.layers.{i}.mlp.shared_expert.down_proj",
    "shared_router": "model.layers.{i}.mlp.shared_expert_gate",
}


def mixtral(config: Any) -> TransformerSpec:
    """Mistral with experts on every layer."""
    experts = (config.num_local_experts, config.num_experts_per_tok, config.intermediate_size)
    layer = LayerSpec(
        attention_of(config, window=config.sliding_window), MoeSpec(*experts, config.hidden_act, renormalize=True)
    )
    return decoder_of(config, lambda index: layer, names=MIXTRAL_NAMES)


def qwen3_moe(config: Any) -> TransformerSpec:
    """Qwen3 with experts on some layers."""
    bias = config.attention_bias
    attention = attention_of(config, head_norm="head", qkv_bias=bias, out_bias=bias, window=config.sliding_window)
    experts = (config.num_experts, config.num_experts_per_tok, config.moe_intermediate_size)
    moe = MoeSpec(*experts, config.hidden_act, config.norm_topk_prob)

    def layer(index: int) -> LayerSpec:
        sparse = config.num_experts > 0 and (index + 1) % config.decoder_sparse_step == 0
        return LayerSpec(attention, moe if sparse and index not in config.mlp_only_layers else mlp_of(config))

    return decoder_of(config, layer, names=QWEN_NAMES)


def qwen2_moe(config: Any) -> TransformerSpec:
    """Qwen2 with experts on some layers, and one that every token passes, weighted."""
    experts = (config.num_experts, config.num_experts_per_tok, config.moe_intermediate_size)
    shared = {"shared_width": config.shared_expert_intermediate_size, "shared_gate": True}
    moe = MoeSpec(*experts, config.hidden_act, config.norm_topk_prob, **shared)

    def layer(index: int) -> LayerSpec:
        sparse = config.num_experts > 0 and (index + 1) % config.decoder_sparse_step == 0
        attention = attention_of(config, qkv_bias=config.qkv_bias, **typed_layer(config, index))
        return LayerSpec(attention, moe if sparse and index not in config.mlp_only_layers else mlp_of(config))

    return decoder_of(config, layer, names=QWEN2_NAMES)


def olmoe(config: Any) -> TransformerSpec:
    """Experts on every layer, norms on q and k as a whole."""
    if config.clip_qkv:
        raise ModelError(
            f"clip_qkv={config.clip_qkv}: clipped q, k and v are not supported; use model_impl='transformers'"
        )
    bias = config.attention_bias
    experts = (config.num_experts, config.num_experts_per_tok, config.intermediate_size)
    moe = MoeSpec(*experts, config.hidden_act, config.norm_topk_prob)
    layer = LayerSpec(attention_of(config, head_norm="all", qkv_bias=bias, out_bias=bias), moe)
    return decoder_of(config, lambda index: layer, names=QWEN_NAMES)
