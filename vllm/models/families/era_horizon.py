"""K2 Horizon: llama with norms of parts of a token; experts on most layers of the larger ones, some of which have experts for values
too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from vllm.errors import ModelError
from vllm.layers.rotary import Leading
from vllm.models.families.era import known
from vllm.models.families.llama import attention_of, decoder_of, mlp_of
from vllm.models.families.moe import CORRECTED_NAMES
from vllm.models.spec import AttentionSpec, LayerSpec, MoeSpec, NormSpec, TransformerSpec

HORIZON_NAMES: Mapping[str, str] = {
    **CORRECTED_NAMES,
    "correction": "model.layers.{i}.mlp.gate.bias",
    "q_norm": "model.layers.{i}.self_attn.q_norm.weight",
    "k_norm": "model.layers.{i}.self_attn.k_norm.weight",
    "attention_gate": "model.layers.{i}.self_attn.gate_proj",
    "value_router": "model.layers.{i}.self_attn.v_router",
    "value_correction": "model.layers.{i}.self_attn.v_router.bias",
    "value_expert": "model.layers.{i}.self_attn.v_experts.{x}",
}


def k2_horizon(config: Any) -> TransformerSpec:
    """Dense, or with experts on the layers that are not named as dense."""
    config = known(config)
    norm = NormSpec("rms", config.rms_norm_eps, groups=getattr(config, "layernorm_num_groups", 1))
    attention, named = _attention(config), frozenset(getattr(config, "mlp_only_layers", None) or ())
    dense, count = LayerSpec(attention, mlp_of(config)), getattr(config, "num_experts", 0)
    sparse = LayerSpec(_with_values(config, attention), _experts(config)) if count else dense

    def layer(index: int) -> LayerSpec:
        reached = (index + 1) % getattr(config, "decoder_sparse_step", 1) == 0
        return sparse if reached and index not in named else dense

    return decoder_of(config, layer, norm, names=HORIZON_NAMES)


def _with_values(config: Any, attention: AttentionSpec) -> AttentionSpec:
    """Return an attention whose values experts make, where there are any."""
    if not (count := getattr(config, "mova_num_experts", 0)):
        return attention
    chosen = config.mova_num_experts_per_tok
    values = MoeSpec(
        *(count, chosen, attention.kv_heads * attention.head_dim, config.hidden_act),
        renormalize=chosen > 1,
        scores=config.router_score_func,
        corrected=config.moe_gate_bias,
        scale=config.router_scaling_factor,
    )
    return replace(attention, values=values)


def _experts(config: Any) -> MoeSpec:
    width = config.moe_intermediate_size
    return MoeSpec(
        *(config.num_experts, config.num_experts_per_tok, width, config.hidden_act),
        renormalize=config.norm_topk_prob,
        shared_width=config.num_shared_experts * width,
        scores=config.router_score_func,
        corrected=config.moe_gate_bias,
        scale=config.router_scaling_factor,
    )


def _attention(config: Any) -> AttentionSpec:
    """Return the attention; where part of a head is rotated, it is the first pairs, whose elements stand half a head apart."""
    own = NormSpec("rms", config.rms_norm_eps) if getattr(config, "query_key_norm", False) else None
    attention = attention_of(config, bias=config.attention_bias, own_norms=own)
    if gate := getattr(config, "attention_gate_func", None):
        attention = replace(attention, gated=True, layout="gate", gate_activation=_gate(gate))
    rotated, rope = getattr(config, "rope_head_dim", None) or attention.head_dim, attention.rope
    assert rope is not None
    if rotated == attention.head_dim:
        return attention
    if (kind := config.rope_parameters["rope_type"]) != "default":
        raise ModelError(
            f"rope_type={kind!r} with rope_head_dim={rotated} is not supported; it is 'default' in K2 Horizon"
        )
    return replace(attention, rope=replace(rope, stretch=Leading(rotated)))


def _gate(name: str) -> Literal["silu", "softplus"]:
    if name not in ("silu", "softplus"):
        raise ModelError(f"attention_gate_func={name!r} is not supported; it is silu or softplus in K2 Horizon")
    return "silu" if name == "silu" else "softplus"
