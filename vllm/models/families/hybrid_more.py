"""State spaces and attention in one layer: falcon_h1, side by side; zamba2, where layers share the attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from vllm.errors import ModelError
from vllm.models.families.hybrid import HYBRID_NAMES, mamba2_of
from vllm.models.families.llama import attention_of, decoder_of
from vllm.models.rope import rope_of
from vllm.models.spec import (
    AssistantSpec,
    AttentionSpec,
    EntrySpec,
    HeadSpec,
    LayerSpec,
    MlpSpec,
    TogetherSpec,
    TransformerSpec,
)
from vllm.models.spec_recurrent import Mamba2Spec


def falcon_h1(config: Any) -> TransformerSpec:
    """Both read one norm, and everything is multiplied with something."""
    if config.mamba_proj_bias != config.projectors_bias:
        raise ModelError(
            f"mamba_proj_bias={config.mamba_proj_bias}, projectors_bias={config.projectors_bias}: a state space with one bias "
            "is not supported; use model_impl='transformers'"
        )
    bias, mlp_bias = config.attention_bias, config.mlp_bias
    into, key = config.attention_in_multiplier, config.key_multiplier
    gate, down = config.mlp_multipliers
    norm: Literal["gate_first", "norm_first"] = "norm_first" if config.mamba_norm_before_gate else "gate_first"
    mamba = replace(
        mamba2_of(config),
        norm=norm if config.mamba_rms_norm else "",
        scales=tuple((config.ssm_in_multiplier * part, part) for part in config.ssm_multipliers),
    )
    mixer = TogetherSpec((mamba, attention_of(config, bias=bias)))
    mlp = MlpSpec(config.intermediate_size, config.hidden_act, up_bias=mlp_bias, down_bias=mlp_bias)
    return decoder_of(
        config,
        lambda index: LayerSpec(mixer, mlp),
        entry=EntrySpec(config.vocab_size, scale=config.embedding_multiplier),
        head=HeadSpec(scale=config.lm_head_multiplier),
        names=HYBRID_NAMES,
        scales={
            "q": (into, 1.0),
            "k": (into * key, key),
            "v": (into, 1.0),
            "o": (config.attention_out_multiplier, config.attention_out_multiplier),
            "leave": (config.ssm_out_multiplier, config.ssm_out_multiplier),
            "gate": (gate, gate),
            "down": (down, down),
        },
    )


_LAYER = "model.layers.{i}"
_MLP_ADAPTER = f"{_LAYER}.feed_forward.gate_up_proj_adapter_list.{{x}}"
ZAMBA2_NAMES: Mapping[str, str] = {
    **HYBRID_NAMES,
    **{f"{part}_down": f"{_LAYER}.self_attn.linear_{part}_adapter_list.{{x}}.0" for part in "qkv"},
    **{f"{part}_up": f"{_LAYER}.self_attn.linear_{part}_adapter_list.{{x}}.1" for part in "qkv"},
    "gate_up": f"{_LAYER}.feed_forward.gate_up_proj",
    "gate_up_down": f"{_MLP_ADAPTER}.0",
    "gate_up_up": f"{_MLP_ADAPTER}.1",
    "join": f"{_LAYER}.linear",
}


def zamba2(config: Any) -> TransformerSpec:
    """Mamba 2 on every layer; some are told more by one of a few transformer blocks, which they share."""
    count, uses, bias = config.num_mem_blocks, config.hybrid_layer_ids, config.add_bias_linear
    mamba, attention = _zamba2_states(config), _zamba2_attention(config)
    mlp = MlpSpec(config.intermediate_size, config.hidden_act, True, bias, bias, "gate_up")

    def layer(index: int) -> LayerSpec:
        if index not in uses:
            return LayerSpec(mamba, None, "single")
        assistant = AssistantSpec(
            attention,
            mlp,
            config.adapter_rank,
            uses.index(index),
            f"{uses[uses.index(index) % count]}.shared_transformer",
            f"{index}.mamba_decoder",
            config.use_shared_attention_adapter,
        )
        return LayerSpec(mamba, None, "assisted", assistant=assistant)

    stored_again = (f"model.layers.{index}.shared_transformer.*" for index in uses[count:])
    return decoder_of(config, layer, names=ZAMBA2_NAMES, ignored_names=("*.rotary_emb.inv_freq", *stored_again))


def _zamba2_attention(config: Any) -> AttentionSpec:
    head_dim = config.attention_head_dim  # of the hidden state and the embedding together
    rope = rope_of(config, head_dim) if config.use_mem_rope else None
    return AttentionSpec(config.num_attention_heads, config.num_key_value_heads, head_dim, (head_dim / 2) ** -0.5, rope)


def _zamba2_states(config: Any) -> Mamba2Spec:
    return Mamba2Spec(
        config.n_mamba_heads,
        config.mamba_headdim,
        config.mamba_ngroups,
        config.mamba_d_state,
        config.mamba_d_conv,
        "silu",
        config.add_bias_linear,
        norm_eps=1e-5,
        time_limits=(config.time_step_min, float("inf")),
    )
