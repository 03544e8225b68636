"""State spaces alone, mamba, falcon_mamba and mamba2; and in a layer each with attention and feed-forwards, nemotron_h."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from vllm.errors import ModelError
from vllm.models.families.llama import attention_of
from vllm.models.families.moe import groups_of
from vllm.models.spec import EntrySpec, LayerSpec, Mixer, MlpSpec, MoeSpec, NormSpec, TransformerSpec
from vllm.models.spec_recurrent import Mamba2Spec, MambaSpec

_MIXER = "backbone.layers.{i}.mixer"
NAMES: Mapping[str, str] = {
    "embed": "backbone.embeddings",
    "norm": "backbone.norm_f",
    "head": "lm_head",
    "norm1": "backbone.layers.{i}.norm",
    "enter": f"{_MIXER}.in_proj",
    "conv": f"{_MIXER}.conv1d",
    "select": f"{_MIXER}.x_proj",
    "spread": f"{_MIXER}.dt_proj",
    "mixer_norm": f"{_MIXER}.norm",
    "leave": f"{_MIXER}.out_proj",
    "a_log": f"{_MIXER}.A_log",
    "skip": f"{_MIXER}.D",
    "dt_bias": f"{_MIXER}.dt_bias",
}


def mamba(config: Any) -> TransformerSpec:
    """A convolution and a state space in each layer."""
    return _states(config, _mamba(config))


def falcon_mamba(config: Any) -> TransformerSpec:
    """Mamba with norms on what its state space is told."""
    return _states(config, replace(_mamba(config), norm="plain", norm_eps=config.mixer_rms_eps))


def mamba2(config: Any) -> TransformerSpec:
    """A convolution and a state space with heads in each layer."""
    mixer = Mamba2Spec(
        config.num_heads,
        config.head_dim,
        config.n_groups,
        config.state_size,
        config.conv_kernel,
        config.hidden_act,
        config.use_bias,
        config.use_conv_bias,
        norm_eps=config.layer_norm_epsilon,
        time_limits=tuple(config.time_step_limit),
    )
    return _states(config, mixer)


NEMOTRON_NAMES: Mapping[str, str] = {
    **NAMES,
    "q": f"{_MIXER}.q_proj",
    "k": f"{_MIXER}.k_proj",
    "v": f"{_MIXER}.v_proj",
    "o": f"{_MIXER}.o_proj",
    "up": f"{_MIXER}.up_proj",
    "down": f"{_MIXER}.down_proj",
    "router": f"{_MIXER}.gate",
    "correction": f"{_MIXER}.gate.e_score_correction_bias",
    "expert_up": f"{_MIXER}.experts.{{x}}.up_proj",
    "expert_down": f"{_MIXER}.experts.{{x}}.down_proj",
    "shared_up": f"{_MIXER}.shared_experts.up_proj",
    "shared_down": f"{_MIXER}.shared_experts.down_proj",
    "narrow": f"{_MIXER}.fc1_latent_proj",
    "widen": f"{_MIXER}.fc2_latent_proj",
}


def nemotron_h(config: Any) -> TransformerSpec:
    """A state space, attention without positions, a feed-forward or experts in each layer."""
    if config.mlp_bias and "moe" in config.layers_block_type:
        raise ModelError("mlp_bias=True: experts with biases are not supported; use model_impl='transformers'")
    return nemotron_decoder(config, [nemotron_layer(config, kind) for kind in config.layers_block_type])


def nemotron_decoder(config: Any, layers: Iterable[LayerSpec]) -> TransformerSpec:
    """Return a decoder of such layers."""
    return replace(_backbone(config, layers), names=NEMOTRON_NAMES, ignored_names=("mtp.*",))


def nemotron_layer(config: Any, kind: str) -> LayerSpec:
    """Return a layer of one kind."""
    if kind == "linear_attention":
        return LayerSpec(_nemotron_states(config), None, "single")
    if kind == "full_attention":
        return LayerSpec(attention_of(config, rope=None), None, "single")
    return LayerSpec(None, _plain_mlp(config) if kind == "mlp" else _plain_experts(config), "ffn")


def _nemotron_states(config: Any) -> Mamba2Spec:
    return Mamba2Spec(
        config.mamba_num_heads,
        config.mamba_head_dim,
        config.n_groups,
        config.ssm_state_size,
        config.conv_kernel,
        config.mamba_hidden_act,
        config.use_bias,
        config.use_conv_bias,
        norm_eps=config.layer_norm_epsilon,
        time_limits=(config.time_step_min, float("inf")),
    )


def _plain_mlp(config: Any) -> MlpSpec:
    bias = config.mlp_bias
    return MlpSpec(config.intermediate_size, config.mlp_hidden_act, gated=False, up_bias=bias, down_bias=bias)


def _plain_experts(config: Any) -> MoeSpec:
    return MoeSpec(
        config.n_routed_experts,
        config.num_experts_per_tok,
        config.moe_intermediate_size,
        config.mlp_hidden_act,
        shared_width=config.moe_shared_expert_intermediate_size,
        scores="sigmoid",
        corrected=True,
        gated=False,
        latent=config.moe_latent_size or 0,
        **groups_of(config),
    )


def _mamba(config: Any) -> MambaSpec:
    return MambaSpec(
        config.intermediate_size,
        config.state_size,
        config.conv_kernel,
        config.time_step_rank,
        config.hidden_act,
        config.use_bias,
        config.use_conv_bias,
    )


def _states(config: Any, mixer: Mixer) -> TransformerSpec:
    return _backbone(config, [LayerSpec(mixer, None, "single")] * config.num_hidden_layers)


def _backbone(config: Any, layers: Iterable[LayerSpec]) -> TransformerSpec:
    return TransformerSpec(
        EntrySpec(config.vocab_size),
        config.hidden_size,
        tuple(layers),
        NormSpec("rms", config.layer_norm_epsilon),
        NAMES,
        config.tie_word_embeddings,
        base_prefix="backbone.",
    )
