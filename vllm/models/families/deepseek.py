"""Deepseek 2 and 3, and their kin: latent attention, in most with experts behind the first layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vllm.errors import ModelError
from vllm.models.families.llama import decoder_of
from vllm.models.families.moe import CORRECTED_NAMES, drafts_of, grouped_experts
from vllm.models.rope import rope_of
from vllm.models.spec import EntrySpec, HeadSpec, LatentSpec, LayerSpec, MlpSpec, MoeSpec, TransformerSpec

_ATTENTION = "model.layers.{i}.self_attn"
NAMES: Mapping[str, str] = {
    **CORRECTED_NAMES,
    "q_a": f"{_ATTENTION}.q_a_proj",
    "q_a_norm": f"{_ATTENTION}.q_a_layernorm",
    "q_b": f"{_ATTENTION}.q_b_proj",
    "kv_a": f"{_ATTENTION}.kv_a_proj_with_mqa",
    "kv_a_norm": f"{_ATTENTION}.kv_a_layernorm",
    "kv_b": f"{_ATTENTION}.kv_b_proj",
}


def deepseek_v2(config: Any) -> TransformerSpec:
    """Experts are chosen by softmax, of the groups that have the best single expert."""
    experts = (config.n_routed_experts, config.num_experts_per_tok, config.moe_intermediate_size)
    limited = config.topk_method == "group_limited_greedy"
    moe = MoeSpec(
        *experts,
        config.hidden_act,
        renormalize=False,
        shared_width=config.n_shared_experts * config.moe_intermediate_size,
        groups=config.n_group if limited else 1,
        top_groups=config.topk_group if limited else 1,
        group_best=1,
        scale=config.routed_scaling_factor,
    )
    return _latent_decoder(config, moe, interleaved=True)


def deepseek_v3(config: Any) -> TransformerSpec:
    """Experts are chosen by corrected sigmoids, of the groups that have the best two; glm 4 lite too."""
    return _latent_decoder(config, grouped_experts(config), interleaved=config.rope_interleave)


def youtu(config: Any) -> TransformerSpec:
    """Deepseek 3 without experts."""
    layer = LayerSpec(_attention(config, interleaved=config.rope_interleave), _mlp(config))
    return decoder_of(config, layer, names=NAMES)


def minicpm3(config: Any) -> TransformerSpec:
    """Without experts, with factors for embeddings, branches and logits."""
    layer = LayerSpec(_attention(config, interleaved=False), _mlp(config))
    return decoder_of(
        config,
        layer,
        entry=EntrySpec(config.vocab_size, scale=config.scale_emb),
        head=HeadSpec(scale=config.dim_model_base / config.hidden_size),
        branch_scale=config.scale_depth / math.sqrt(config.num_hidden_layers),
        names=NAMES,
    )


_LAYER = "model.layers.{i[0]}"
LONGCAT_NAMES: Mapping[str, str] = {
    role: name.replace("layers.{i}.self_attn", "layers.{i[0]}.self_attn.{i[1]}")
    .replace("layers.{i}.mlp.experts", "layers.{i[0]}.mlp.experts")
    .replace("layers.{i}.mlp", "layers.{i[0]}.mlps.{i[1]}")
    for role, name in NAMES.items()
} | {
    "norm1": f"{_LAYER}.input_layernorm.{{i[1]}}",
    "norm2": f"{_LAYER}.post_attention_layernorm.{{i[1]}}",
    "router": f"{_LAYER}.mlp.router.classifier",
    "correction": f"{_LAYER}.mlp.router.e_score_correction_bias",
}


def longcat_flash(config: Any) -> TransformerSpec:
    """Each layer is two, with experts beside them, some of which do nothing; queries and latents are scaled."""
    attention = _attention(config, interleaved=True)
    stretched = attention.scale * math.sqrt(config.hidden_size / config.q_lora_rank)
    latent_scale = math.sqrt(config.hidden_size / config.kv_lora_rank)
    attention = replace(attention, scale=stretched, latent_scale=latent_scale)
    layer = LayerSpec(attention, _mlp(config), "twice", beside=_longcat_experts(config))
    first, count = config.n_routed_experts, config.zero_expert_num or 0
    nothing = tuple(f"*.mlp.experts.{first + index}.*" for index in range(count))  # transformers stores halves of them
    layers = (layer,) * config.num_layers
    return decoder_of(config, layer, layers=layers, names=LONGCAT_NAMES, ignored_names=("model.mtp.*", *nothing))


def _longcat_experts(config: Any) -> MoeSpec:
    for field, built in (("zero_expert_type", "identity"), ("mla_scale_q_lora", True), ("mla_scale_kv_lora", True)):
        if (value := getattr(config, field, built)) != built:
            raise ModelError(f"{field}={value!r} is not supported; it is {built!r} in LongCat's")
    return MoeSpec(
        config.n_routed_experts,
        config.moe_topk,
        config.expert_ffn_hidden_size,
        config.hidden_act,
        renormalize=False,
        corrected=True,
        scale=config.routed_scaling_factor,
        router_bias=getattr(config, "router_bias", False),
        identities=config.zero_expert_num or 0,
    )


def _latent_decoder(config: Any, moe: MoeSpec, *, interleaved: bool) -> TransformerSpec:
    attention, mlp = _attention(config, interleaved=interleaved), _mlp(config)
    dense = getattr(config, "first_k_dense_replace", None)
    kinds = getattr(config, "mlp_layer_types", None)

    def layer(index: int) -> LayerSpec:
        sparse = kinds[index] == "sparse" if kinds else index >= (dense or 0)
        return LayerSpec(attention, moe if sparse else mlp)

    ignored = ("*.rotary_emb.inv_freq", *drafts_of(config))
    return decoder_of(config, layer, names=NAMES, ignored_names=ignored)


def _attention(config: Any, *, interleaved: bool) -> LatentSpec:
    plain, rotated = config.qk_nope_head_dim, config.qk_rope_head_dim
    return LatentSpec(
        config.num_attention_heads,
        config.q_lora_rank or 0,
        config.kv_lora_rank,
        plain,
        rotated,
        config.v_head_dim,
        (plain + rotated) ** -0.5 * _stretch(config.rope_parameters),
        replace(rope_of(config, rotated), interleaved=interleaved),
        config.attention_bias,
    )


def _mlp(config: Any) -> MlpSpec:
    bias = getattr(config, "mlp_bias", False)
    return MlpSpec(config.intermediate_size, config.hidden_act, up_bias=bias, down_bias=bias)


def _stretch(rope: Mapping[str, Any]) -> float:
    """Return the factor of scores where positions are stretched."""
    scale, factor = rope.get("mscale_all_dim") or 0, rope.get("factor") or 1.0
    if rope.get("rope_type", "default") == "default" or not scale or factor <= 1:
        return 1.0
    return float((0.1 * scale * math.log(factor) + 1.0) ** 2)
