"""Step's models of text: 1 knows positions by the roots of distances, 3 makes queries by way of something narrow, 3.5 weighs heads
and bounds what experts make."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.errors import ModelError
from vllm.layers.position_bias import Alibi
from vllm.models.families.era import known
from vllm.models.families.llama import NAMES, attention_of, decoder_of, mlp_of, typed_layer
from vllm.models.families.moe import drafts_of, sigmoid_experts
from vllm.models.spec import AttentionSpec, LayerSpec, MlpSpec, MoeSpec, NormSpec, TransformerSpec
from vllm.ops.activations import Clamp

STEP3_NAMES: Mapping[str, str] = {
    **NAMES,
    "q_a_norm": "model.layers.{i}.self_attn.inter_norm",
    "q_b": "model.layers.{i}.self_attn.wq",
    "router": "model.layers.{i}.moe.gate",
    "experts_gate": "model.layers.{i}.moe.gate_proj.weight",
    "experts_up": "model.layers.{i}.moe.up_proj.weight",
    "experts_down": "model.layers.{i}.moe.down_proj.weight",
    "shared_gate": "model.layers.{i}.share_expert.gate_proj",
    "shared_up": "model.layers.{i}.share_expert.up_proj",
    "shared_down": "model.layers.{i}.share_expert.down_proj",
}


def step1(config: Any) -> TransformerSpec:
    """Llama with roots of distances in the scores instead of rotated heads."""
    tied = getattr(config, "tie_word_embeddings", True)
    config = known(config, num_key_value_heads="num_attention_groups")
    attention = attention_of(config, bias=config.attention_bias, rope=None, position_bias=Alibi(root=True))
    return decoder_of(config, LayerSpec(attention, mlp_of(config, bias=config.mlp_bias)), tied=tied)


def step3(config: Any) -> TransformerSpec:
    """Llama whose heads share one key and value, with queries made by way of something narrow, and experts on most layers."""
    config = known(config, max_position_embeddings="max_position_embedding")
    attention = attention_of(config, kv_heads=1, query_rank=config.share_q_dim or config.head_dim)
    experts = (config.moe_num_experts, config.moe_top_k, config.moe_intermediate_size, config.hidden_act)
    moe = MoeSpec(*experts, config.norm_expert_weight, shared_width=config.share_expert_dim, layout="apart")
    mlp, sparse = mlp_of(config), _sparse_layers(config)
    return decoder_of(
        config, lambda index: LayerSpec(attention, moe if index in sparse else mlp), names=STEP3_NAMES, tied=False
    )


def _sparse_layers(config: Any) -> frozenset[int]:
    """Return which layers have experts: those that are named, or all but the first."""
    named = getattr(config, "moe_layers_enum", None)
    if named is None:
        return frozenset(range(1, config.num_hidden_layers))
    return frozenset(int(number) for number in named.split(","))


STEP3P5_NAMES: Mapping[str, str] = {
    **STEP3_NAMES,
    "attention_gate": "model.layers.{i}.self_attn.g_proj",
    "correction": "model.layers.{i}.moe.router_bias",
}


def step3p5(config: Any) -> TransformerSpec:
    """Windows on most layers, with more heads and a rope of their own; norms around 1, on heads too; experts behind the first
    layers, those of some bounded."""
    _refuse_other_step3p5(config)

    def layer(index: int) -> LayerSpec:
        sparse = config.mlp_layer_types[index] == "sparse"
        return LayerSpec(_weighed(config, index), _experts(config, index) if sparse else _bounded_mlp(config, index))

    ignored = ("*.rotary_emb.inv_freq", "*.expert_bias", *drafts_of(config))
    norm = NormSpec("rms", config.rms_norm_eps, offset=1.0)
    return decoder_of(config, layer, norm, names=STEP3P5_NAMES, ignored_names=ignored)


def _weighed(config: Any, index: int) -> AttentionSpec:
    """Return a layer's attention; those with windows may have another number of heads."""
    own, fields = config.per_layer_config[index], typed_layer(config, index)
    fields |= {"scale": config.query_pre_attn_scalar**-0.5, "head_norm": "head", "head_gated": True}
    return attention_of(own, bias=config.attention_bias, **fields)


def _bounded_mlp(config: Any, index: int) -> MlpSpec:
    return mlp_of(config, bias=config.mlp_bias, clamp=_clamp(config.swiglu_limits_shared, index))


def _experts(config: Any, index: int) -> MoeSpec:
    return sigmoid_experts(
        config,
        config.n_routed_experts,
        0,
        shared_width=config.share_expert_dim,
        scale=config.moe_router_scaling_factor,
        layout="apart",
        clamp=_clamp(config.swiglu_limits, index),
        shared_clamp=_clamp(config.swiglu_limits_shared, index),
    )


def _clamp(limits: list[float | None] | None, index: int) -> Clamp | None:
    """Return a layer's bounds; 0 means none, too."""
    limit = limits[index] if limits else None
    return Clamp(limit, behind=True) if limit else None


def _refuse_other_step3p5(config: Any) -> None:
    built = {
        "use_head_wise_attn_gate": True,
        "use_moe_router_bias": True,
        "norm_expert_weight": True,
        "moe_router_activation": "sigmoid",
        "yarn_only_types": ["full_attention"],
        "mlp_bias": False,
    }
    for name, value in built.items():
        if (found := getattr(config, name, value)) != value:
            raise ModelError(f"{name}={found!r}: of step 3.5, those with {value!r} are supported")
    if not all(getattr(config, "use_rope_layers", None) or (True,)):
        raise ModelError("use_rope_layers: a step 3.5 with layers that know no positions is not supported")
