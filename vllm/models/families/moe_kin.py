"""More of the llama line with experts: the same parts, put together, weighed or stored a little differently."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vllm.errors import ModelError
from vllm.layers.rotary import Unstretched
from vllm.models.families.gpt import multi_head
from vllm.models.families.kin import AFTER_NAMES, exaone4_attention
from vllm.models.families.llama import attention_of, decoder_of, mlp_of, typed_layer
from vllm.models.families.moe import (
    CORRECTED_NAMES,
    MIXTRAL_NAMES,
    QWEN_NAMES,
    grouped_experts,
    groups_of,
    sigmoid_experts,
)
from vllm.models.rope import rope_of
from vllm.models.spec import AttentionSpec, EntrySpec, HeadSpec, LayerSpec, MoeSpec, NormSpec, TransformerSpec


def phimoe(config: Any) -> TransformerSpec:
    """Layer norms and biases; two experts, each weighed among those that are about as good."""
    experts = (config.num_local_experts, config.num_experts_per_tok, config.intermediate_size)
    moe = MoeSpec(*experts, config.hidden_act, renormalize=False, jitter=config.router_jitter_noise)
    attention = attention_of(config, bias=config.attention_bias, window=config.sliding_window)
    layer, norm = LayerSpec(attention, moe), NormSpec("layer", config.rms_norm_eps)
    return decoder_of(config, layer, norm, names=MIXTRAL_NAMES, head=HeadSpec(bias=config.lm_head_bias))


_BLOCK = "transformer.blocks.{i}"
DBRX_NAMES: Mapping[str, str] = {
    "embed": "transformer.wte",
    "norm": "transformer.norm_f",
    "head": "lm_head",
    "norm1": f"{_BLOCK}.norm_attn_norm.norm_1",
    "norm2": f"{_BLOCK}.norm_attn_norm.norm_2",
    "qkv": f"{_BLOCK}.norm_attn_norm.attn.Wqkv",
    "o": f"{_BLOCK}.norm_attn_norm.attn.out_proj",
    "router": f"{_BLOCK}.ffn.router.layer",
    "experts_gate": f"{_BLOCK}.ffn.experts.mlp.w1",
    "experts_up": f"{_BLOCK}.ffn.experts.mlp.v1",
    "experts_down": f"{_BLOCK}.ffn.experts.mlp.w2",
}


def dbrx(config: Any) -> TransformerSpec:
    """Layer norms without bias, bounded q, k and v, and all experts' rows one below the other."""
    layer, norm = (
        LayerSpec(_dbrx_attention(config), _dbrx_experts(config.ffn_config)),
        NormSpec("layer", 1e-5, bias=False),
    )
    return decoder_of(config, layer, norm, names=DBRX_NAMES, base_prefix="transformer.")


def _dbrx_attention(config: Any) -> AttentionSpec:
    own, rope = config.attn_config, rope_of(config, config.d_model // config.n_heads)
    if (theta := getattr(own, "rope_theta", None)) is not None:
        rope = replace(rope, theta=theta)
    fields = {"kv_heads": own.kv_n_heads, "rope": rope, "layout": "concat", "clip": own.clip_qkv}
    return multi_head(config.d_model, config.n_heads, bias=False, **fields)


def _dbrx_experts(config: Any) -> MoeSpec:
    order = config.moe_normalize_expert_weights
    if order not in (None, 1.0):
        raise ModelError(f"moe_normalize_expert_weights={order} is not supported; use 1 or leave it out")
    experts = (config.moe_num_experts, config.moe_top_k, config.ffn_hidden_size, config.ffn_act_fn["name"])
    return MoeSpec(*experts, renormalize=order is not None, layout="flat")


EXAONE_NAMES: Mapping[str, str] = {**CORRECTED_NAMES, "correction": "model.layers.{i}.mlp.e_score_correction_bias"}


def exaone_moe(config: Any) -> TransformerSpec:
    """Exaone 4 with its norms before its branches, and with experts behind the first layers."""
    moe = sigmoid_experts(config, config.num_experts, config.num_shared_experts, **groups_of(config))
    mlp = mlp_of(config)

    def layer(index: int) -> LayerSpec:
        ffn = moe if config.mlp_layer_types[index] == "sparse" else mlp
        return LayerSpec(exaone4_attention(config, index), ffn)

    return decoder_of(config, layer, names=EXAONE_NAMES, ignored_names=("*.rotary_emb.inv_freq", "mtp.*"))


def flex_olmo(config: Any) -> TransformerSpec:
    """Olmo 2 with experts on every layer."""
    experts = (config.num_experts, config.num_experts_per_tok, config.intermediate_size)
    moe = MoeSpec(*experts, config.hidden_act, config.norm_topk_prob)
    layer = LayerSpec(attention_of(config, head_norm="all", bias=config.attention_bias), moe, "after")
    return decoder_of(config, layer, names={**QWEN_NAMES, **AFTER_NAMES})


HUNYUAN_NAMES: Mapping[str, str] = {
    **QWEN_NAMES,
    "q_norm": "model.layers.{i}.self_attn.query_layernorm",
    "k_norm": "model.layers.{i}.self_attn.key_layernorm",
    "router": "model.layers.{i}.mlp.gate.wg",
    "shared_gate": "model.layers.{i}.mlp.shared_mlp.gate_proj",
    "shared_up": "model.layers.{i}.mlp.shared_mlp.up_proj",
    "shared_down": "model.layers.{i}.mlp.shared_mlp.down_proj",
}


def hunyuan(config: Any) -> TransformerSpec:
    """Llama whose heads of q and k are normalised once they are rotated."""
    return decoder_of(config, LayerSpec(_hunyuan_attention(config), mlp_of(config)), names=HUNYUAN_NAMES)


def hunyuan_moe(config: Any) -> TransformerSpec:
    """With experts on every layer, and a network that every token passes."""
    attention, width = _hunyuan_attention(config), config.intermediate_size

    def layer(index: int) -> LayerSpec:
        count, chosen = (
            number if isinstance(number, int) else number[index] for number in (config.num_experts, config.moe_topk)
        )
        return LayerSpec(attention, MoeSpec(count, chosen, width, config.hidden_act, True, shared_width=width))

    return decoder_of(config, layer, names=HUNYUAN_NAMES)


def _hunyuan_attention(config: Any) -> AttentionSpec:
    parameters = config.rope_parameters
    alpha = parameters.get("alpha") if parameters.get("rope_type") == "dynamic" else None
    attention = attention_of(config, head_norm="turned", bias=config.attention_bias)
    if not alpha:
        return attention
    assert attention.rope is not None  # with alpha its theta is larger, and as large for all lengths
    theta = attention.rope.theta * alpha ** (attention.rope.width / (attention.rope.width - 2))
    return replace(attention, rope=replace(attention.rope, theta=theta, stretch=Unstretched()))


AFMOE_NAMES: Mapping[str, str] = {
    **CORRECTED_NAMES,
    "norm1_after": "model.layers.{i}.post_attention_layernorm",
    "norm2": "model.layers.{i}.pre_mlp_layernorm",
    "norm2_after": "model.layers.{i}.post_mlp_layernorm",
    "attention_gate": "model.layers.{i}.self_attn.gate_proj",
    "router": "model.layers.{i}.mlp.router.gate",
    "correction": "model.layers.{i}.mlp.expert_bias",
}


def afmoe(config: Any) -> TransformerSpec:
    """Norms before and behind each branch, gated attention that knows positions where it has windows, corrected sigmoids."""
    moe = sigmoid_experts(config, config.num_experts, config.num_shared_experts, scale=config.route_scale)
    mlp = mlp_of(config)

    def layer(index: int) -> LayerSpec:
        ffn = moe if index >= config.num_dense_layers else mlp
        return LayerSpec(_afmoe_attention(config, index), ffn, "sandwich")

    scale = config.hidden_size**0.5 if config.mup_enabled else 1.0
    return decoder_of(config, layer, names=AFMOE_NAMES, entry=EntrySpec(config.vocab_size, scale=scale))


def _afmoe_attention(config: Any, index: int) -> AttentionSpec:
    window, bias = typed_layer(config, index)["window"], config.attention_bias
    attention = attention_of(config, window=window, head_norm="head", bias=bias, gated=True, layout="gate")
    return attention if window is not None else replace(attention, rope=None)


def solar_open(config: Any) -> TransformerSpec:
    """Llama with experts in groups on every layer."""
    layer = LayerSpec(attention_of(config, qkv_bias=config.attention_bias), grouped_experts(config))
    return decoder_of(config, layer, names=CORRECTED_NAMES)


def mellum(config: Any) -> TransformerSpec:
    """Qwen3 with windows on some layers, a rope for each kind of them, and experts on some."""
    bias, mlp = config.attention_bias, mlp_of(config)
    experts = (config.num_local_experts, config.num_experts_per_tok, config.moe_intermediate_size)
    moe = MoeSpec(*experts, config.hidden_act, config.norm_topk_prob)

    def layer(index: int) -> LayerSpec:
        typed = typed_layer(config, index)
        attention = attention_of(config, head_norm="head", bias=bias, **typed)
        return LayerSpec(attention, moe if config.mlp_layer_types[index] == "sparse" else mlp)

    return decoder_of(config, layer, names=QWEN_NAMES, ignored_names=("*.rotary_emb.inv_freq", "mtp.*"))
