"""Ling and its kin (bailing, param 2): q, k and v in one tensor, experts chosen by softmax or, later, group by group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from vllm.errors import ModelError
from vllm.models.families.deepseek import NAMES as LATENT_NAMES
from vllm.models.families.deepseek import deepseek_v3
from vllm.models.families.era import known, refuse_set
from vllm.models.families.llama import attention_of, decoder_of, mlp_of, qwen2
from vllm.models.families.moe import SARVAM_NAMES, drafts_of, sigmoid_experts
from vllm.models.spec import AttentionSpec, HeadSpec, LayerSpec, MoeSpec, TransformerSpec

PANGU_NAMES: Mapping[str, str] = {
    **LATENT_NAMES,
    "norm1_after": "model.layers.{i}.post_attention_layernorm",
    "norm2": "model.layers.{i}.pre_mlp_layernorm",
    "norm2_after": "model.layers.{i}.post_mlp_layernorm",
}


def ling(config: Any) -> TransformerSpec:
    """The first ones: experts are chosen by softmax."""
    experts = (config.num_experts, config.num_experts_per_tok, config.moe_intermediate_size)
    shared = (config.num_shared_experts or 0) * config.moe_intermediate_size
    moe = MoeSpec(*experts, config.hidden_act, config.norm_topk_prob, shared_width=shared)
    head = HeadSpec(unit="columns" if getattr(config, "norm_head", False) else "")
    return _decoder(config, moe, getattr(config, "first_k_dense_replace", 0), head=head)


def ling2(config: Any) -> TransformerSpec:
    """Experts are chosen by corrected sigmoids, of the groups that have the best two; norms on the heads of q and k."""
    if getattr(config, "score_function", "sigmoid") != "sigmoid":
        raise ModelError(
            f"score_function={config.score_function!r}: of these experts, those weighed by 'sigmoid' are here"
        )
    groups = {"groups": config.n_group, "top_groups": config.topk_group, "scale": config.routed_scaling_factor}
    sums = {"renormalize": config.num_experts_per_tok > 1, "shared_width": _shared_width(config)}
    return _decoder(
        config, sigmoid_experts(config, config.num_experts, 0, **groups, **sums), config.first_k_dense_replace
    )


def _shared_width(config: Any) -> int:
    """Return the width of the network that every token passes: of all shared experts together, or of one times their number."""
    width = getattr(config, "moe_shared_expert_intermediate_size", None)
    return (config.num_shared_experts or 0) * config.moe_intermediate_size if width is None else int(width)


def _decoder(config: Any, moe: MoeSpec, dense: int, **fields: Any) -> TransformerSpec:
    """Return a decoder with experts behind so many layers; `fields` replace its fields."""
    config = _with_share(known(config))
    mlp, attention = mlp_of(config, bias=config.use_bias), _attention(config)
    ignored = ("*.rotary_emb.inv_freq", *drafts_of(config))
    return decoder_of(
        config,
        lambda index: LayerSpec(attention, moe if index >= dense else mlp),
        names=SARVAM_NAMES,
        ignored_names=ignored,
        **fields,
    )


def _attention(config: Any) -> AttentionSpec:
    normed: Literal["", "head"] = "head" if getattr(config, "use_qk_norm", False) else ""
    biases = {"qkv_bias": config.use_qkv_bias or config.use_bias, "out_bias": config.use_bias}
    return attention_of(config, layout="concat", head_norm=normed, **biases)


def _with_share(config: Any) -> Any:
    """Say with the rope what share of a head it rotates."""
    config.rope_parameters.setdefault("partial_rotary_factor", getattr(config, "partial_rotary_factor", 1.0))
    return config


def mimo(config: Any) -> TransformerSpec:
    """Qwen2 whose checkpoint has layers beside it that guess further tokens."""
    spec = qwen2(known(config))
    return replace(spec, ignored_names=(*spec.ignored_names, "model.mtp_layers.*"))


def pangu_ultra(config: Any) -> TransformerSpec:
    """Deepseek 3 with norms before and after its branches."""
    variants = ("param_sink_number", "use_mome", "index_topk", "sliding_window", "sliding_window_list")
    refuse_set(config, variants, "of pangu ultra, those with plain latent attention are here")
    spec = deepseek_v3(_as_deepseek(config))
    layers = tuple(_corrected(layer, config) for layer in spec.layers)
    if not getattr(config, "sandwich_norm", False):
        return replace(spec, layers=layers)
    return replace(spec, layers=tuple(replace(layer, block="sandwich") for layer in layers), names=PANGU_NAMES)


def _corrected(layer: LayerSpec, config: Any) -> LayerSpec:
    if not isinstance(layer.ffn, MoeSpec):
        return layer
    return replace(layer, ffn=replace(layer.ffn, corrected=bool(getattr(config, "router_enable_expert_bias", False))))


def _as_deepseek(config: Any) -> Any:
    config = known(config, num_local_experts="n_routed_experts")
    for name, value in (("n_group", 1), ("topk_group", 1), ("rope_interleave", True)):
        setattr(config, name, getattr(config, name, value))
    return config
