"""State spaces on most layers and attention on some: jamba, bamba, granite 4; and granite's experts without state spaces."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from vllm.models.families.kin import with_own_rope
from vllm.models.families.llama import NAMES, attention_of, decoder_of, mlp_of
from vllm.models.spec import AttentionSpec, EntrySpec, HeadSpec, LayerSpec, MlpSpec, MoeSpec, TransformerSpec
from vllm.models.spec_recurrent import Mamba2Spec, MambaSpec

_LAYER = "model.layers.{i}"
HYBRID_NAMES: Mapping[str, str] = {
    **NAMES,
    "norm": "model.final_layernorm",
    "norm2": f"{_LAYER}.pre_ff_layernorm",
    "enter": f"{_LAYER}.mamba.in_proj",
    "conv": f"{_LAYER}.mamba.conv1d",
    "select": f"{_LAYER}.mamba.x_proj",
    "spread": f"{_LAYER}.mamba.dt_proj",
    "dt_norm": f"{_LAYER}.mamba.dt_layernorm",
    "b_norm": f"{_LAYER}.mamba.b_layernorm",
    "c_norm": f"{_LAYER}.mamba.c_layernorm",
    "mixer_norm": f"{_LAYER}.mamba.norm",
    "leave": f"{_LAYER}.mamba.out_proj",
    "a_log": f"{_LAYER}.mamba.A_log",
    "skip": f"{_LAYER}.mamba.D",
    "dt_bias": f"{_LAYER}.mamba.dt_bias",
    "gate": f"{_LAYER}.feed_forward.gate_proj",
    "up": f"{_LAYER}.feed_forward.up_proj",
    "down": f"{_LAYER}.feed_forward.down_proj",
    "router": f"{_LAYER}.feed_forward.router",
    "expert_gate": f"{_LAYER}.feed_forward.experts.{{x}}.gate_proj",
    "expert_up": f"{_LAYER}.feed_forward.experts.{{x}}.up_proj",
    "expert_down": f"{_LAYER}.feed_forward.experts.{{x}}.down_proj",
}
_ATTENTION = ("attention", "full_attention")
"""What configs call a layer of it"""


def jamba(config: Any) -> TransformerSpec:
    """Mamba with norms on what its state space is told, attention without positions, experts on some layers."""
    attention, mamba, mlp = attention_of(config, rope=None), _jamba_states(config), mlp_of(config)
    moe = MoeSpec(config.num_experts, config.num_experts_per_tok, config.intermediate_size, config.hidden_act, False)

    def layer(index: int) -> LayerSpec:
        mixer = attention if config.layers_block_type[index] in _ATTENTION else mamba
        return LayerSpec(mixer, moe if config.layers_num_experts[index] > 1 else mlp)

    return decoder_of(config, layer, names=HYBRID_NAMES)


def _jamba_states(config: Any) -> MambaSpec:
    return MambaSpec(
        config.mamba_expand * config.hidden_size,
        config.mamba_d_state,
        config.mamba_d_conv,
        config.mamba_dt_rank,
        config.hidden_act,
        config.mamba_proj_bias,
        config.mamba_conv_bias,
        "weighted",
        config.rms_norm_eps,
    )


def bamba(config: Any) -> TransformerSpec:
    """Mamba 2, and attention with rotary positions."""
    attention = attention_of(config, bias=config.attention_bias)
    bias, mamba = config.mlp_bias, mamba2_of(config)
    mlp = MlpSpec(config.intermediate_size, config.hidden_act, up_bias=bias, down_bias=bias)
    return decoder_of(
        config,
        lambda index: LayerSpec(attention if config.layers_block_type[index] in _ATTENTION else mamba, mlp),
        names=HYBRID_NAMES,
    )


GRANITE_NAMES: Mapping[str, str] = {
    **HYBRID_NAMES,
    "norm": "model.norm",
    "norm2": f"{_LAYER}.post_attention_layernorm",
    "gate_up": f"{_LAYER}.shared_mlp.input_linear",
    "down": f"{_LAYER}.shared_mlp.output_linear",
    "router": f"{_LAYER}.block_sparse_moe.router.layer",
    "experts_gate_up": f"{_LAYER}.block_sparse_moe.input_linear.weight",
    "experts_down": f"{_LAYER}.block_sparse_moe.output_linear.weight",
    "shared_gate_up": f"{_LAYER}.shared_mlp.input_linear",
    "shared_down": f"{_LAYER}.shared_mlp.output_linear",
}


def granitemoe(config: Any) -> TransformerSpec:
    """Granite with experts, in some models beside a network that every token passes."""
    moe = _granite_experts(config)
    return _granite(config, lambda index: LayerSpec(_granite_attention(config), moe))


GRANITE_SWA_NAMES: Mapping[str, str] = {
    **GRANITE_NAMES,
    "router": f"{_LAYER}.block_sparse_moe.router",
    "experts_gate_up": f"{_LAYER}.block_sparse_moe.experts.gate_up_proj",
    "experts_down": f"{_LAYER}.block_sparse_moe.experts.down_proj",
}


def granitemoe_swa(config: Any) -> TransformerSpec:
    """With experts, sinks, windows on some layers, and a rope for each layer, or none."""
    moe, attention = _granite_experts(config), _granite_attention(config)
    spec = _granite(config, lambda index: LayerSpec(with_own_rope(attention, config, index), moe))
    return replace(spec, names=GRANITE_SWA_NAMES)


def granitemoehybrid(config: Any) -> TransformerSpec:
    """Mamba 2 on most layers; where there are no experts, the network that every token passes alone."""
    attention, mamba = _granite_attention(config), mamba2_of(config)
    mlp = MlpSpec(config.shared_intermediate_size, config.hidden_act, layout="gate_up")
    ffn = _granite_experts(config) if config.num_local_experts else mlp

    def layer(index: int) -> LayerSpec:
        return LayerSpec(attention if config.layers_block_type[index] in _ATTENTION else mamba, ffn)

    return _granite(config, layer)


def _granite(config: Any, layer: Callable[[int], LayerSpec]) -> TransformerSpec:
    return decoder_of(
        config,
        layer,
        entry=EntrySpec(config.vocab_size, scale=config.embedding_multiplier, scales_media=True),
        head=HeadSpec(scale=1 / config.logits_scaling),
        branch_scale=config.residual_multiplier,
        names=GRANITE_NAMES,
    )


def _granite_attention(config: Any) -> AttentionSpec:
    bias = config.attention_bias
    attention = attention_of(config, scale=config.attention_multiplier, bias=bias)
    has_positions = getattr(config, "position_embedding_type", "rope") == "rope"
    return attention if has_positions else replace(attention, rope=None)


def _granite_experts(config: Any) -> MoeSpec:
    experts = (config.num_local_experts, config.num_experts_per_tok, config.intermediate_size)
    shared = getattr(config, "shared_intermediate_size", 0)
    return MoeSpec(*experts, config.hidden_act, renormalize=True, shared_width=shared, layout="stacked")


def mamba2_of(config: Any) -> Mamba2Spec:
    """Return the state space of a hybrid."""
    return Mamba2Spec(
        config.mamba_n_heads,
        config.mamba_d_head,
        config.mamba_n_groups,
        config.mamba_d_state,
        config.mamba_d_conv,
        config.hidden_act,
        config.mamba_proj_bias,
        config.mamba_conv_bias,
        norm_eps=config.rms_norm_eps,
        time_limits=tuple(config.time_step_limit or (0.0, float("inf"))),
    )
