"""Gemma 3n and 4: embeddings for each layer, layers that read others' keys and values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
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
    sources, scaled = shared_caches(config), config.altup_correct_scale

    def layer(index: int) -> LayerSpec:
        width, sparsity = config.intermediate_size[index], config.activation_sparsity_pattern[index]
        mlp = MlpSpec(width, config.hidden_activation, sparsity=sparsity)
        return LayerSpec(_attention_3n(config, index, sources.get(index)), mlp)

    lanes = LanesSpec(config.altup_num_inputs, config.altup_active_idx, config.laurel_rank, scaled)
    unused = [*unused_names(sources), *(() if scaled else ("*.altup.correct_output_scale",))]
    return _decoder(config, layer, unused, lanes=lanes, names=LANES_NAMES)


def _attention_3n(config: Any, index: int, source: int | None) -> AttentionSpec:
    own = attention_of(config, scale=1.0, head_norm="head", bias=config.attention_bias, **typed_layer(config, index))
    return replace(own, value_norm=True, shares_cache_of=source)


def gemma4(config: Any) -> TransformerSpec:
    """Gemma 3 with normalised values and scores as they come; each layer's result is scaled."""
    if config.use_bidirectional_attention == "all":
        raise ModelError(
            "use_bidirectional_attention='all': a gemma 4 whose tokens all see each other is not supported"
        )
    sources, experts = shared_caches(config), _experts(config)

    def layer(index: int) -> LayerSpec:
        attention, mlp = _attention(config, index, sources.get(index)), _mlp(config, index in sources)
        return LayerSpec(attention, mlp, "sandwich_beside" if experts else "sandwich", beside=experts, scaled=True)

    return _decoder(config, layer, unused_names(sources), names=PER_LAYER_NAMES)


def _attention(config: Any, index: int, source: int | None) -> AttentionSpec:
    sizes, kind, bias = config.per_layer_config[index], config.layer_types[index], config.attention_bias
    spec = AttentionSpec(
        *(config.num_attention_heads, sizes.num_key_value_heads, sizes.head_dim),
        scale=1.0,
        rope=rope_of(config, sizes.head_dim, kind),
        window=config.sliding_window if kind == "sliding_attention" else None,
        head_norm="head",
        qkv_bias=bias,
        out_bias=bias,
        value_norm=True,
    )
    one_for_both = getattr(config, "attention_k_eq_v", True) and kind == "full_attention"
    return replace(spec, layout="q_k" if one_for_both else "split", shares_cache_of=source)


def _mlp(config: Any, reads_others: bool) -> MlpSpec:
    is_wide = reads_others and getattr(config, "use_double_wide_mlp", False)
    return MlpSpec(config.intermediate_size * (2 if is_wide else 1), config.hidden_activation)


def _experts(config: Any) -> MoeSpec | None:
    if not getattr(config, "enable_moe_block", False):
        return None
    experts = (config.num_experts, config.top_k_experts, config.moe_intermediate_size)
    return MoeSpec(*experts, config.hidden_activation, renormalize=True, layout="stacked", guided=True)


def _decoder(config: Any, layer: Callable[[int], LayerSpec], unused: Sequence[str], **fields: Any) -> TransformerSpec:
    """Return a decoder with embeddings for each layer, in whose checkpoints the names `unused` mean nothing."""
    scale = config.hidden_size**0.5
    entry = EntrySpec(config.vocab_size, scale=scale, per_layer=per_layer_of(config))
    head = HeadSpec(softcap=config.final_logit_softcapping or 0.0)
    ignored = ("*.rotary_emb.inv_freq", *unused)
    return decoder_of(config, layer, entry=entry, head=head, ignored_names=ignored, **fields)


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
