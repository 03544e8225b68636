"""Delta nets with attention on every fourth layer or so: olmo_hybrid; kimi_linear, with latent attention and experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.models.families.deepseek import NAMES as LATENT_NAMES
from vllm.models.families.llama import NAMES, decoder_of, mlp_of
from vllm.models.families.moe import grouped_experts
from vllm.models.rope import rope_of
from vllm.models.spec import AttentionSpec, LatentSpec, LayerSpec, TransformerSpec
from vllm.models.spec_recurrent import DeltaNetSpec

_LAYER = "model.layers.{i}"
_OLMO = f"{_LAYER}.linear_attn"
OLMO_NAMES: Mapping[str, str] = {
    **NAMES,
    "norm1": f"{_LAYER}.attention_layer_norm",
    "norm2": f"{_LAYER}.feedforward_layer_norm",
    "norm1_after": f"{_LAYER}.post_attention_layernorm",
    "norm2_after": f"{_LAYER}.post_feedforward_layernorm",
    "delta_q": f"{_OLMO}.q_proj",
    "delta_k": f"{_OLMO}.k_proj",
    "delta_v": f"{_OLMO}.v_proj",
    "enter_gate": f"{_OLMO}.g_proj",
    "beta": f"{_OLMO}.b_proj",
    "decay": f"{_OLMO}.a_proj",
    "conv_q": f"{_OLMO}.q_conv1d",
    "conv_k": f"{_OLMO}.k_conv1d",
    "conv_v": f"{_OLMO}.v_conv1d",
    "a_log": f"{_OLMO}.A_log",
    "dt_bias": f"{_OLMO}.dt_bias",
    "mixer_norm": f"{_OLMO}.o_norm",
    "leave": f"{_OLMO}.o_proj",
}


def olmo_hybrid(config: Any) -> TransformerSpec:
    """Norms before the branches of a delta net's layer, and behind those of attention's."""
    mlp = mlp_of(config)
    attending, remembering = LayerSpec(_olmo_attention(config), mlp, "after"), LayerSpec(_olmo_net(config), mlp)

    def layer(index: int) -> LayerSpec:
        return attending if config.layer_types[index] == "full_attention" else remembering

    return decoder_of(config, layer, names=OLMO_NAMES, ignored_names=("*.rotary_emb.inv_freq", "mtp*"))


def _olmo_net(config: Any) -> DeltaNetSpec:
    return DeltaNetSpec(
        config.linear_num_key_heads,
        config.linear_num_value_heads,
        config.linear_key_head_dim,
        config.linear_value_head_dim,
        config.linear_conv_kernel_dim,
        config.hidden_act,
        "separate",
        norm_eps=1e-5,
        strength=2.0 if config.linear_allow_neg_eigval else 1.0,
    )


def _olmo_attention(config: Any) -> AttentionSpec:
    heads, bias = config.num_attention_heads, config.attention_bias
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    has_positions = (config.rope_parameters or {}).get("rope_theta") is not None
    rope = rope_of(config, head_dim) if has_positions else None
    kv_heads, scale = config.num_key_value_heads, head_dim**-0.5
    return AttentionSpec(heads, kv_heads, head_dim, scale, rope, head_norm="all", qkv_bias=bias, out_bias=bias)


_KIMI, _EXPERTS = f"{_LAYER}.self_attn", f"{_LAYER}.block_sparse_moe"
KIMI_NAMES: Mapping[str, str] = {
    **LATENT_NAMES,
    "delta_q": f"{_KIMI}.q_proj",
    "delta_k": f"{_KIMI}.k_proj",
    "delta_v": f"{_KIMI}.v_proj",
    "enter_gate": f"{_KIMI}.g_a_proj",
    "enter_gate_up": f"{_KIMI}.g_b_proj",
    "beta": f"{_KIMI}.b_proj",
    "decay": f"{_KIMI}.f_a_proj",
    "decay_up": f"{_KIMI}.f_b_proj",
    "conv_q": f"{_KIMI}.q_conv1d",
    "conv_k": f"{_KIMI}.k_conv1d",
    "conv_v": f"{_KIMI}.v_conv1d",
    "a_log": f"{_KIMI}.A_log",
    "dt_bias": f"{_KIMI}.dt_bias",
    "mixer_norm": f"{_KIMI}.o_norm",
    "leave": f"{_KIMI}.o_proj",
    "router": f"{_EXPERTS}.gate",
    "correction": f"{_EXPERTS}.gate.e_score_correction_bias",
    "expert_gate": f"{_EXPERTS}.experts.{{x}}.w1",
    "expert_up": f"{_EXPERTS}.experts.{{x}}.w3",
    "expert_down": f"{_EXPERTS}.experts.{{x}}.w2",
    "shared_gate": f"{_EXPERTS}.shared_experts.gate_proj",
    "shared_up": f"{_EXPERTS}.shared_experts.up_proj",
    "shared_down": f"{_EXPERTS}.shared_experts.down_proj",
}


def kimi_linear(config: Any) -> TransformerSpec:
    """Each element of a key fades by itself; attention is latent and has no positions."""
    net, attention = _kimi_net(config), _kimi_attention(config)
    moe, mlp = grouped_experts(config), mlp_of(config)

    def layer(index: int) -> LayerSpec:
        mixer = attention if config.layer_types[index] == "full_attention" else net
        return LayerSpec(mixer, moe if config.mlp_layer_types[index] == "sparse" else mlp)

    return decoder_of(config, layer, names=KIMI_NAMES)


def _kimi_net(config: Any) -> DeltaNetSpec:
    heads, width = config.linear_num_heads, config.linear_head_dim
    return DeltaNetSpec(
        heads,
        heads,
        width,
        width,
        config.linear_conv_kernel_dim,
        config.hidden_act,
        "separate",
        norm_eps=config.rms_norm_eps,
        gate="sigmoid",
        rank=width,
    )


def _kimi_attention(config: Any) -> LatentSpec:
    plain, rest = config.qk_nope_head_dim, config.qk_rope_head_dim
    return LatentSpec(
        config.num_attention_heads,
        config.q_lora_rank or 0,
        config.kv_lora_rank,
        plain,
        rest,
        config.v_head_dim,
        (plain + rest) ** -0.5,
        None,
        config.attention_bias,
    )
