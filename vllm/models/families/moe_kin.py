"""More of the llama line with experts: the same parts, put together, weighed or stored a little differently."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vllm.errors import ModelError
from vllm.layers.rotary import Unstretched
from vllm.models.families.kin import AFTER_NAMES
from vllm.models.families.llama import attention_of, decoder_of, mlp_of, typed_layer
from vllm.models.families.moe import CORRECTED_NAMES, MIXTRAL_NAMES, QWEN_NAMES, grouped_experts
from vllm.models.rope import rope_of
from vllm.models.spec import AttentionSpec, EntrySpec, HeadSpec, LayerSpec, MoeSpec, NormSpec, TransformerSpec


def phimoe(config: Any) -> TransformerSpec:
    """Layer norms and biases; two experts, each weighed among those that are about as good."""
    bias, window = config.attention_bias, config.sliding_window
    attention = attention_of(config, qkv_bias=bias, out_bias=bias, window=window)
    experts = (config.num_local_experts, config.num_experts_per_tok, config.intermediate_size)
    moe = MoeSpec(*experts, config.hidden_act, renormalize=False, jitter=config.router_jitter_noise)
    return decoder_of(
        config,
        lambda index: LayerSpec(attention, moe),
        NormSpec("layer", config.rms_norm_eps),
        names=MIXTRAL_NAMES,
        head=HeadSpec(bias=config.lm_head_bias),
    )


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
    head_dim, experts = config.d_model // config.n_heads, config.ffn_config
    if experts.moe_normalize_expert_weights not in (None, 1.0):
        raise ModelError(
            f"moe_normalize_expert_weights={experts.moe_normalize_expert_weights} is not supported; use 1 or leave it out"
        )
    rope, theta = rope_of(config, head_dim), getattr(config.attn_config, "rope_theta", None)
    attention = AttentionSpec(
        config.n_heads,
        config.attn_config.kv_n_heads,
        head_dim,
        head_dim**-0.5,
        rope if theta is None else replace(rope, theta=theta),
        layout="concat",
        clip=config.attn_config.clip_qkv,
    )
    moe = MoeSpec(
        experts.moe_num_experts,
        experts.moe_top_k,
        experts.ffn_hidden_size,
        experts.ffn_act_fn["name"],
        renormalize=experts.moe_normalize_expert_weights is not None,
        layout="flat",
    )
    return TransformerSpec(
        EntrySpec(config.vocab_size),
        config.d_model,
        (LayerSpec(attention, moe),) * config.n_layers,
        NormSpec("layer", 1e-5, bias=False),
        DBRX_NAMES,
        config.tie_word_embeddings,
        base_prefix="transformer.",
    )


EXAONE_NAMES: Mapping[str, str] = {**CORRECTED_NAMES, "correction": "model.layers.{i}.mlp.e_score_correction_bias"}


def exaone_moe(config: Any) -> TransformerSpec:
    """Exaone 4 with its norms before its branches, and with experts behind the first layers."""
    mlp, shared = mlp_of(config), config.num_shared_experts * config.moe_intermediate_size
    moe = MoeSpec(
        config.num_experts,
        config.num_experts_per_tok,
        config.moe_intermediate_size,
        config.hidden_act,
        config.norm_topk_prob,
        shared_width=shared,
        scores="sigmoid",
        corrected=True,
        groups=config.n_group,
        top_groups=config.topk_group,
        scale=config.routed_scaling_factor,
    )

    def layer(index: int) -> LayerSpec:
        typed = typed_layer(config, index)
        attention = attention_of(config, head_norm="head", **typed)
        if config.sliding_window is not None and typed["window"] is None:
            attention = replace(attention, rope=None)
        return LayerSpec(attention, moe if config.mlp_layer_types[index] == "sparse" else mlp)

    return decoder_of(config, layer, names=EXAONE_NAMES, ignored_names=("*.rotary_emb.inv_freq", "mtp.*"))


def flex_olmo(config: Any) -> TransformerSpec:
    """Olmo 2 with experts on every layer."""
    bias = config.attention_bias
    experts = (config.num_experts, config.num_experts_per_tok, config.intermediate_size)
    moe = MoeSpec(*experts, config.hidden_act, config.norm_topk_prob)
    layer = LayerSpec(attention_of(config, head_norm="all", qkv_bias=bias, out_bias=bias), moe, "after")
    return decoder_of(config, lambda index: layer, names={**QWEN_NAMES, **AFTER_NAMES})


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
    attention, mlp = _hunyuan_attention(config), mlp_of(config)
    return decoder_of(config, lambda index: LayerSpec(attention, mlp), names=HUNYUAN_NAMES)


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
    bias, parameters = config.attention_bias, config.rope_parameters
    alpha = parameters.get("alpha") if parameters.get("rope_type") == "dynamic" else None
    attention = attention_of(config, head_norm="turned", qkv_bias=bias, out_bias=bias)
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
    mlp, shared = mlp_of(config), config.num_shared_experts * config.moe_intermediate_size
    moe = MoeSpec(
        config.num_experts,
        config.num_experts_per_tok,
        config.moe_intermediate_size,
        config.hidden_act,
        renormalize=True,
        shared_width=shared,
        scores="sigmoid",
        corrected=True,
        scale=config.route_scale,
    )
    bias = config.attention_bias

    def layer(index: int) -> LayerSpec:
        window = typed_layer(config, index)["window"]
        attention = attention_of(
            config, window=window, head_norm="head", qkv_bias=bias, out_bias=bias, gated=True, layout="gate"
        )
        if window is None:
            attention = replace(attention, rope=None)
        return LayerSpec(attention, moe if index >= config.num_dense_layers else mlp, "sandwich")

    scale = config.hidden_size**0.5 if config.mup_enabled else 1.0
    return decoder_of(config, layer, names=AFMOE_NAMES, entry=EntrySpec(config.vocab_size, scale=scale))


def solar_open(config: Any) -> TransformerSpec:
    """Llama with experts in groups on every layer."""
    layer = LayerSpec(attention_of(config, qkv_bias=config.attention_bias), grouped_experts(config))
    return decoder_of(config, lambda index: layer, names=CORRECTED_NAMES)


def mellum(config: Any) -> TransformerSpec:
    """Qwen3 with windows on some layers, a rope for each kind of them, and experts on some."""
    bias, mlp = config.attention_bias, mlp_of(config)
    experts = (config.num_local_experts, config.num_experts_per_tok, config.moe_intermediate_size)
    moe = MoeSpec(*experts, config.hidden_act, config.norm_topk_prob)

    def layer(index: int) -> LayerSpec:
        typed = typed_layer(config, index)
        attention = attention_of(config, head_norm="head", qkv_bias=bias, out_bias=bias, **typed)
        return LayerSpec(attention, moe if config.mlp_layer_types[index] == "sparse" else mlp)

    return decoder_of(config, layer, names=QWEN_NAMES, ignored_names=("*.rotary_emb.inv_freq", "mtp.*"))
