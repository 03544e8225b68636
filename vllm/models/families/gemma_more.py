"""Gemma 3n and 4: embeddings for each layer, layers that read others' keys and values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.errors import ModelError
from vllm.models.families.gemma import SANDWICH_NAMES
from vllm.models.families.llama import attention_of, decoder_of, typed_layer
from vllm.models.rope import rope_of
from vllm.models.spec import (
    AttentionSpec,
    EntrySpec,
    HeadSpec,
    LanesSpec,
    LayerSpec,
    MlpSpec,
    MoeSpec,
    PerLayerSpec,
    TransformerSpec,
)

_LAYER = "model.layers.{i}"
PER_LAYER_NAMES: Mapping[str, str] = {
    **SANDWICH_NAMES,
    "per_layer_embed": "model.embed_tokens_per_layer",
    "per_layer_project": "model.per_layer_model_projection",
    "per_layer_norm": "model.per_layer_projection_norm",
    "per_layer_gate": f"{_LAYER}.per_layer_input_gate",
    "per_layer_out": f"{_LAYER}.per_layer_projection",
    "norm_per_layer": f"{_LAYER}.post_per_layer_input_norm",
    "layer_scale": f"{_LAYER}.layer_scalar",
    "norm_ffn_after": f"{_LAYER}.post_feedforward_layernorm_1",
    "norm_beside": f"{_LAYER}.pre_feedforward_layernorm_2",
    "norm_beside_after": f"{_LAYER}.post_feedforward_layernorm_2",
    "router": f"{_LAYER}.router.proj",
    "router_scale": f"{_LAYER}.router.scale",
    "expert_scales": f"{_LAYER}.router.per_expert_scale",
    "experts_gate_up": f"{_LAYER}.experts.gate_up_proj",
    "experts_down": f"{_LAYER}.experts.down_proj",
}


LANES_NAMES: Mapping[str, str] = {
    **PER_LAYER_NAMES,
    "lane_in": "model.altup_projections.{x}",
    "lane_out": "model.altup_unembed_projections.{x}",
    "lane_norm": f"{_LAYER}.altup.router_norm",
    "lane_router": f"{_LAYER}.altup.modality_router",
    "lane_prediction": f"{_LAYER}.altup.prediction_coefs",
    "lane_correction": f"{_LAYER}.altup.correction_coefs",
    "lane_scale": f"{_LAYER}.altup.correct_output_scale",
    "laurel_down": f"{_LAYER}.laurel.linear_left",
    "laurel_up": f"{_LAYER}.laurel.linear_right",
    "laurel_norm": f"{_LAYER}.laurel.post_laurel_norm",
}


def gemma3n(config: Any) -> TransformerSpec:
    """Several hidden states side by side, and feed-forwards most of whose gates are shut in the first layers."""
    sources, bias = shared_caches(config), config.attention_bias

    def layer(index: int) -> LayerSpec:
        attention = attention_of(
            config,
            scale=1.0,
            head_norm="head",
            qkv_bias=bias,
            out_bias=bias,
            value_norm=True,
            shares_cache_of=sources.get(index),
            **typed_layer(config, index),
        )
        mlp = MlpSpec(
            config.intermediate_size[index],
            config.hidden_activation,
            sparsity=config.activation_sparsity_pattern[index],
        )
        return LayerSpec(attention, mlp)

    scaled = config.altup_correct_scale
    return decoder_of(
        config,
        layer,
        entry=EntrySpec(config.vocab_size, scale=config.hidden_size**0.5, per_layer=per_layer_of(config)),
        head=HeadSpec(softcap=config.final_logit_softcapping or 0.0),
        lanes=LanesSpec(config.altup_num_inputs, config.altup_active_idx, config.laurel_rank, scaled),
        names=LANES_NAMES,
        ignored_names=(
            "*.rotary_emb.inv_freq",
            *unused_names(sources),
            *(() if scaled else ("*.altup.correct_output_scale",)),
        ),
    )


def gemma4(config: Any) -> TransformerSpec:
    """Gemma 3 with normalised values and scores as they come; each layer's result is scaled."""
    if config.use_bidirectional_attention == "all":
        raise ModelError(
            "use_bidirectional_attention='all': a gemma 4 whose tokens all see each other is not supported"
        )
    sources, experts = shared_caches(config), _experts(config)

    def layer(index: int) -> LayerSpec:
        is_wide = getattr(config, "use_double_wide_mlp", False) and index in sources
        mlp = MlpSpec(config.intermediate_size * (2 if is_wide else 1), config.hidden_activation)
        attention = _attention(config, index, sources.get(index))
        if experts is None:
            return LayerSpec(attention, mlp, "sandwich", scaled=True)
        return LayerSpec(attention, mlp, "sandwich_beside", beside=experts, scaled=True)

    return decoder_of(
        config,
        layer,
        entry=EntrySpec(config.vocab_size, scale=config.hidden_size**0.5, per_layer=per_layer_of(config)),
        head=HeadSpec(softcap=config.final_logit_softcapping or 0.0),
        names=PER_LAYER_NAMES,
        ignored_names=("*.rotary_emb.inv_freq", *unused_names(sources)),
    )


def _attention(config: Any, index: int, source: int | None) -> AttentionSpec:
    sizes, kind, bias = config.per_layer_config[index], config.layer_types[index], config.attention_bias
    one_for_both = getattr(config, "attention_k_eq_v", True) and kind == "full_attention"
    return AttentionSpec(
        config.num_attention_heads,
        sizes.num_key_value_heads,
        sizes.head_dim,
        1.0,
        rope_of(config, sizes.head_dim, kind),
        window=config.sliding_window if kind == "sliding_attention" else None,
        head_norm="head",
        qkv_bias=bias,
        out_bias=bias,
        layout="q_k" if one_for_both else "split",
        value_norm=True,
        shares_cache_of=source,
    )


def _experts(config: Any) -> MoeSpec | None:
    if not getattr(config, "enable_moe_block", False):
        return None
    experts = (config.num_experts, config.top_k_experts, config.moe_intermediate_size)
    return MoeSpec(*experts, config.hidden_activation, renormalize=True, layout="stacked", guided=True)


def per_layer_of(config: Any) -> PerLayerSpec | None:
    width = getattr(config, "hidden_size_per_layer_input", 0)
    return PerLayerSpec(config.vocab_size_per_layer_input, width, config.hidden_activation) if width else None


def shared_caches(config: Any) -> dict[int, int]:
    """Return which layers read which one's keys and values: those of the last layer of their kind that has its own."""
    kinds = config.layer_types
    first = config.num_hidden_layers - (getattr(config, "num_kv_shared_layers", 0) or 0)
    last = {kind: index for index, kind in enumerate(kinds[:first])}
    lacking = set(kinds[first:]) - last.keys()
    if lacking:
        raise ModelError(
            f"num_kv_shared_layers={config.num_kv_shared_layers}: no layer before has {', '.join(lacking)}"
        )
    return {index: last[kinds[index]] for index in range(first, config.num_hidden_layers)}


def unused_names(sources: Mapping[int, int]) -> list[str]:
    """Return the names of what layers that read others' keys and values have for their own in some checkpoints."""
    return [
        f"model.layers.{i}.self_attn.{part}_{end}" for i in sources for part in "kv" for end in ("proj.*", "norm.*")
    ]
