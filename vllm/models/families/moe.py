"""The llama line with a mixture of experts for a feed-forward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vllm.errors import ModelError
from vllm.models.families.kin import ernie4_5
from vllm.models.families.llama import NAMES, attention_of, decoder_of, mlp_of, typed_layer
from vllm.models.spec import LayerSpec, MoeSpec, TransformerSpec

MIXTRAL_NAMES: Mapping[str, str] = {
    **NAMES,
    "router": "model.layers.{i}.block_sparse_moe.gate",
    "expert_gate": "model.layers.{i}.block_sparse_moe.experts.{x}.w1",
    "expert_up": "model.layers.{i}.block_sparse_moe.experts.{x}.w3",
    "expert_down": "model.layers.{i}.block_sparse_moe.experts.{x}.w2",
}

QWEN_NAMES: Mapping[str, str] = {
    **NAMES,
    "router": "model.layers.{i}.mlp.gate",
    "expert_gate": "model.layers.{i}.mlp.experts.{x}.gate_proj",
    "expert_up": "model.layers.{i}.mlp.experts.{x}.up_proj",
    "expert_down": "model.layers.{i}.mlp.experts.{x}.down_proj",
}


QWEN2_NAMES: Mapping[str, str] = {
    **QWEN_NAMES,
    "shared_gate": "model.layers.{i}.mlp.shared_expert.gate_proj",
    "shared_up": "model.layers.{i}.mlp.shared_expert.up_proj",
    "shared_down": "model.layers.{i}.mlp.shared_expert.down_proj",
    "shared_router": "model.layers.{i}.mlp.shared_expert_gate",
}


def mixtral(config: Any) -> TransformerSpec:
    """Mistral with experts on every layer."""
    experts = (config.num_local_experts, config.num_experts_per_tok, config.intermediate_size)
    attention = attention_of(config, window=config.sliding_window)
    layer = LayerSpec(attention, MoeSpec(*experts, config.hidden_act, renormalize=True))
    return decoder_of(config, layer, names=MIXTRAL_NAMES)


def qwen3_moe(config: Any) -> TransformerSpec:
    """Qwen3 with experts on some layers."""
    attention = attention_of(config, head_norm="head", bias=config.attention_bias, window=config.sliding_window)
    experts = (config.num_experts, config.num_experts_per_tok, config.moe_intermediate_size)
    moe, mlp = MoeSpec(*experts, config.hidden_act, config.norm_topk_prob), mlp_of(config)

    def layer(index: int) -> LayerSpec:
        return LayerSpec(attention, moe if is_sparse(config, index) else mlp)

    return decoder_of(config, layer, names=QWEN_NAMES)


def qwen2_moe(config: Any) -> TransformerSpec:
    """Qwen2 with experts on some layers, and one that every token passes, weighted."""
    experts = (config.num_experts, config.num_experts_per_tok, config.moe_intermediate_size)
    shared = {"shared_width": config.shared_expert_intermediate_size, "shared_gate": True}
    moe, mlp = MoeSpec(*experts, config.hidden_act, config.norm_topk_prob, **shared), mlp_of(config)

    def layer(index: int) -> LayerSpec:
        attention = attention_of(config, qkv_bias=config.qkv_bias, **typed_layer(config, index))
        return LayerSpec(attention, moe if is_sparse(config, index) else mlp)

    return decoder_of(config, layer, names=QWEN2_NAMES)


def is_sparse(config: Any, index: int) -> bool:
    """Whether a layer of qwen's has experts."""
    reached = config.num_experts > 0 and (index + 1) % config.decoder_sparse_step == 0
    return reached and index not in config.mlp_only_layers


def olmoe(config: Any) -> TransformerSpec:
    """Experts on every layer, norms on q and k as a whole."""
    if config.clip_qkv:
        raise ModelError(
            f"clip_qkv={config.clip_qkv}: clipped q, k and v are not supported; use model_impl='transformers'"
        )
    bias = config.attention_bias
    experts = (config.num_experts, config.num_experts_per_tok, config.intermediate_size)
    moe = MoeSpec(*experts, config.hidden_act, config.norm_topk_prob)
    layer = LayerSpec(attention_of(config, head_norm="all", bias=bias), moe)
    return decoder_of(config, layer, names=QWEN_NAMES)


CORRECTED_NAMES: Mapping[str, str] = {
    **QWEN_NAMES,
    "correction": "model.layers.{i}.mlp.gate.e_score_correction_bias",
    "shared_gate": "model.layers.{i}.mlp.shared_experts.gate_proj",
    "shared_up": "model.layers.{i}.mlp.shared_experts.up_proj",
    "shared_down": "model.layers.{i}.mlp.shared_experts.down_proj",
}
ERNIE_NAMES: Mapping[str, str] = {
    **CORRECTED_NAMES,
    "correction": "model.layers.{i}.mlp.moe_statics.e_score_correction_bias",
}
MINIMAX_NAMES: Mapping[str, str] = {
    **MIXTRAL_NAMES,
    "correction": "model.layers.{i}.block_sparse_moe.e_score_correction_bias",
}


SARVAM_NAMES: Mapping[str, str] = {
    **CORRECTED_NAMES,
    "embed": "model.word_embeddings",
    "qkv": "model.layers.{i}.attention.query_key_value",
    "o": "model.layers.{i}.attention.dense",
    "q_norm": "model.layers.{i}.attention.query_layernorm",
    "k_norm": "model.layers.{i}.attention.key_layernorm",
    "correction": "model.layers.{i}.mlp.gate.expert_bias",
}


def glm4_moe(config: Any) -> TransformerSpec:
    """Llama with experts in groups behind the first layers."""
    if config.model_type == "sarvam_moe":  # transformers saves it under this architecture
        return sarvam_moe(config)
    return _grouped(config, **_glm4_moe_attention(config))


def dots1(config: Any) -> TransformerSpec:
    """Glm 4 with experts, windows on some layers, and always norms on the heads of q and k."""
    return _grouped(config, head_norm="head", bias=config.attention_bias)


def sarvam_moe(config: Any) -> TransformerSpec:
    """Glm 4 with experts under other names, with q, k and v in one tensor."""
    return replace(_grouped(config, layout="concat", **_glm4_moe_attention(config)), names=SARVAM_NAMES)


def _glm4_moe_attention(config: Any) -> dict[str, Any]:
    return {"head_norm": "head" if getattr(config, "use_qk_norm", True) else "", "qkv_bias": config.attention_bias}


def _grouped(config: Any, **fields: Any) -> TransformerSpec:
    """Return a decoder with experts in groups behind the first layers; `fields` are those of its attention."""
    moe, mlp = grouped_experts(config), mlp_of(config)

    def layer(index: int) -> LayerSpec:
        attention = attention_of(config, **typed_layer(config, index), **fields)
        return LayerSpec(attention, moe if index >= config.first_k_dense_replace else mlp)

    ignored = ("*.rotary_emb.inv_freq", *drafts_of(config))
    return decoder_of(config, layer, names=CORRECTED_NAMES, ignored_names=ignored)


def ernie4_5_moe(config: Any) -> TransformerSpec:
    """Ernie 4.5 with experts on some layers, chosen by corrected softmax."""
    if config.use_bias:
        raise ModelError("use_bias=True: experts with biases are not supported; use model_impl='transformers'")
    spec, moe = ernie4_5(config), _ernie_experts(config)

    def layer(index: int) -> LayerSpec:
        reached = config.moe_layer_start_index <= index <= config.moe_layer_end_index
        sparse = reached and (index + 1) % config.moe_layer_interval == 0
        return replace(spec.layers[index], ffn=moe) if sparse else spec.layers[index]

    layers = tuple(layer(index) for index in range(config.num_hidden_layers))
    return replace(spec, layers=layers, names=ERNIE_NAMES, ignored_names=(*spec.ignored_names, "model.mtp_*"))


def _ernie_experts(config: Any) -> MoeSpec:
    experts = (config.num_experts, config.num_experts_per_tok, config.moe_intermediate_size)
    shared = config.moe_num_shared_experts * config.moe_intermediate_size
    return MoeSpec(*experts, config.hidden_act, renormalize=True, shared_width=shared, corrected=True)


def minimax_m2(config: Any) -> TransformerSpec:
    """Experts on every layer, weighed by sigmoids; norms on q and k as a whole."""
    experts = (config.num_local_experts, config.num_experts_per_tok, config.intermediate_size)
    moe = MoeSpec(*experts, config.hidden_act, renormalize=True, scores="sigmoid", corrected=True)
    layer = LayerSpec(attention_of(config, head_norm="all"), moe)
    return decoder_of(config, layer, names=MINIMAX_NAMES)


def grouped_experts(config: Any) -> MoeSpec:
    """Return experts that are chosen by corrected sigmoids, group by group."""
    return sigmoid_experts(config, config.num_local_experts, config.n_shared_experts or 0, **groups_of(config))


def sigmoid_experts(config: Any, count: int, shared: int, **fields: Any) -> MoeSpec:
    """Return `count` experts that are chosen by corrected sigmoids, and `shared` that every token passes; `fields` replace
    fields of the spec."""
    width = config.moe_intermediate_size
    experts = (count, config.num_experts_per_tok, width, config.hidden_act)
    spec = MoeSpec(*experts, renormalize=True, shared_width=shared * width, scores="sigmoid", corrected=True)
    return replace(spec, **fields)


def groups_of(config: Any) -> dict[str, Any]:
    """Return what a config says of groups of experts, and of the weights of those chosen."""
    return {
        "renormalize": config.norm_topk_prob,
        "groups": config.n_group,
        "top_groups": config.topk_group,
        "scale": config.routed_scaling_factor,
    }


def drafts_of(config: Any) -> tuple[str, ...]:
    """Return the names of layers behind the last one, which guess further tokens."""
    count = getattr(config, "num_nextn_predict_layers", None) or 0
    return tuple(f"model.layers.{config.num_hidden_layers + index}.*" for index in range(count))
