"""K2 Horizon: llama with norms of parts of a token, and experts on most layers of the large one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

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
}


def k2_horizon(config: Any) -> TransformerSpec:
    """Dense, or with experts on the layers that are not named as dense."""
    _refuse_gates(config)
    config = known(config)
    norm = NormSpec("rms", config.rms_norm_eps, groups=getattr(config, "layernorm_num_groups", 1))
    attention, mlp = _attention(config), mlp_of(config)
    dense = frozenset(getattr(config, "mlp_only_layers", None) or ())
    count, every = getattr(config, "num_experts", 0), getattr(config, "decoder_sparse_step", 1)

    def layer(index: int) -> LayerSpec:
        sparse = count > 0 and index not in dense and (index + 1) % every == 0
        return LayerSpec(attention, _experts(config) if sparse else mlp)

    return decoder_of(config, layer, norm, names=HORIZON_NAMES)


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
    attention = attention_of(config, bias=getattr(config, "attention_bias", False), own_norms=own)
    rotated, rope = getattr(config, "rope_head_dim", None) or attention.head_dim, attention.rope
    assert rope is not None
    if rotated == attention.head_dim:
        return attention
    if (kind := config.rope_parameters["rope_type"]) != "default":
        raise ModelError(
            f"rope_type={kind!r} with rope_head_dim={rotated} is not supported; it is 'default' in K2 Horizon"
        )
    return replace(attention, rope=replace(rope, stretch=Leading(rotated)))


def _refuse_gates(config: Any) -> None:
    for name in ("attention_gate_func", "mova_num_experts"):
        if value := getattr(config, name, None):
            raise ModelError(
                f"{name}={value!r}: a K2 Horizon with gates behind attention, or with experts for values, is not supported; "
                "use one without"
            )
