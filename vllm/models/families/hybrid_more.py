"""State spaces and attention in one layer: falcon_h1, side by side; zamba2, where layers share the attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from vllm.errors import ModelError
from vllm.models.families.hybrid import HYBRID_NAMES, mamba2_of
from vllm.models.families.llama import attention_of, decoder_of, mlp_of
from vllm.models.rope import rope_of
from vllm.models.spec import (
    AssistantSpec,
    AttentionSpec,
    EntrySpec,
    HeadSpec,
    LayerSpec,
    TogetherSpec,
    TransformerSpec,
)
from vllm.models.spec_recurrent import Mamba2Spec


def falcon_h1(config: Any) -> TransformerSpec:
    """Both read one norm, and everything is multiplied with something."""
    mixer = TogetherSpec((_falcon_states(config), attention_of(config, bias=config.attention_bias)))
    return decoder_of(
        config,
        LayerSpec(mixer, mlp_of(config, bias=config.mlp_bias)),
        entry=EntrySpec(config.vocab_size, scale=config.embedding_multiplier),
        head=HeadSpec(scale=config.lm_head_multiplier),
        names=HYBRID_NAMES,
        scales=_falcon_scales(config),
    )


def _falcon_states(config: Any) -> Mamba2Spec:
    if config.mamba_proj_bias != config.projectors_bias:
        raise ModelError(
            f"mamba_proj_bias={config.mamba_proj_bias}, projectors_bias={config.projectors_bias}: a state space with one bias "
            "is not supported; use model_impl='transformers'"
        )
    order: Literal["gate_first", "norm_first"] = "norm_first" if config.mamba_norm_before_gate else "gate_first"
    scales = tuple((config.ssm_in_multiplier * part, part) for part in config.ssm_multipliers)
    return replace(mamba2_of(config), norm=order if config.mamba_rms_norm else "", scales=scales)


def _falcon_scales(config: Any) -> dict[str, tuple[float, float]]:
    """Return what weights and biases are multiplied with."""
    into, key = config.attention_in_multiplier, config.key_multiplier
    out, leave, (gate, down) = config.attention_out_multiplier, config.ssm_out_multiplier, config.mlp_multipliers
    return {
        "q": (into, 1.0),
        "k": (into * key, key),
        "v": (into, 1.0),
        "o": (out, out),
        "leave": (leave, leave),
        "gate": (gate, gate),
        "down": (down, down),
    }


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
    uses, alone = config.hybrid_layer_ids, LayerSpec(_zamba2_states(config), None, "single")

    def layer(index: int) -> LayerSpec:
        if index not in uses:
            return alone
        return replace(alone, block="assisted", assistant=_zamba2_assistant(config, index))

    stored_again = (f"model.layers.{index}.shared_transformer.*" for index in uses[config.num_mem_blocks :])
    return decoder_of(config, layer, names=ZAMBA2_NAMES, ignored_names=("*.rotary_emb.inv_freq", *stored_again))


def _zamba2_assistant(config: Any, index: int) -> AssistantSpec:
    uses, number = config.hybrid_layer_ids, config.hybrid_layer_ids.index(index)
    return AssistantSpec(
        _zamba2_attention(config),
        mlp_of(config, bias=config.add_bias_linear, layout="gate_up"),
        config.adapter_rank,
        number,
        f"{uses[number % config.num_mem_blocks]}.shared_transformer",
        f"{index}.mamba_decoder",
        config.use_shared_attention_adapter,
    )


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
