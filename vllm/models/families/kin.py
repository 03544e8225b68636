"""The kin of the llama line: the same parts, put together or sized a little differently."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vllm.errors import ModelError
from vllm.layers.rotary import Tempering
from vllm.models.families.llama import NAMES, attention_of, decoder_of, mlp_of, typed_layer
from vllm.models.spec import AttentionSpec, EntrySpec, HeadSpec, LayerSpec, NormSpec, TransformerSpec

AFTER_NAMES: Mapping[str, str] = {
    **NAMES,
    "norm1_after": "model.layers.{i}.post_attention_layernorm",
    "norm2_after": "model.layers.{i}.post_feedforward_layernorm",
}

GLM4_NAMES: Mapping[str, str] = {
    **NAMES,
    "norm1_after": "model.layers.{i}.post_self_attn_layernorm",
    "norm2": "model.layers.{i}.post_attention_layernorm",
    "norm2_after": "model.layers.{i}.post_mlp_layernorm",
}


def seed_oss(config: Any) -> TransformerSpec:
    """Llama with biases on q, k and v."""
    attention = attention_of(config, qkv_bias=config.attention_bias, out_bias=config.attention_out_bias)
    return decoder_of(config, LayerSpec(attention, mlp_of(config, bias=config.mlp_bias)))


def arcee(config: Any) -> TransformerSpec:
    """Llama with a feed-forward without a gate."""
    return decoder_of(config, _ungated(config))


APERTUS_NAMES: Mapping[str, str] = {
    **NAMES,
    "norm1": "model.layers.{i}.attention_layernorm",
    "norm2": "model.layers.{i}.feedforward_layernorm",
    "xielu": "model.layers.{i}.mlp.act_fn",
}


def apertus(config: Any) -> TransformerSpec:
    """Llama with norms on the heads of q and k, and a feed-forward without a gate whose activation is learned."""
    attention = attention_of(config, head_norm="head", bias=config.attention_bias)
    layer = LayerSpec(attention, mlp_of(config, gated=False))
    ignored = ("*.rotary_emb.inv_freq", "*.act_fn.beta", "*.act_fn.eps")  # the same in all
    return decoder_of(config, layer, names=APERTUS_NAMES, ignored_names=ignored)


def windowed(config: Any) -> TransformerSpec:
    """Llama with windows on some layers: ministral, cwm."""
    mlp = mlp_of(config)
    return decoder_of(config, lambda index: LayerSpec(attention_of(config, **typed_layer(config, index)), mlp))


def ministral3(config: Any) -> TransformerSpec:
    """Mistral whose queries grow behind the positions that it was first trained with."""
    parameters = config.rope_parameters
    tempering = None
    if beta := parameters.get("llama_4_scaling_beta"):
        tempering = Tempering(parameters["original_max_position_embeddings"], beta)
    attention = attention_of(config, window=config.sliding_window, tempering=tempering)
    return decoder_of(config, LayerSpec(attention, mlp_of(config)))


def ernie4_5(config: Any) -> TransformerSpec:
    """Llama whose pairs of rotated elements are neighbours; helium too."""
    bias = getattr(config, "use_bias", None)
    bias = config.attention_bias if bias is None else bias
    attention = neighbours(attention_of(config, qkv_bias=bias, out_bias=bias and hasattr(config, "use_bias")))
    mlp_bias = getattr(config, "use_bias", False) or getattr(config, "mlp_bias", False)
    return decoder_of(config, LayerSpec(attention, mlp_of(config, bias=mlp_bias)))


def smollm3(config: Any) -> TransformerSpec:
    """Llama with layers that know no positions."""
    bias, mlp = config.attention_bias, mlp_of(config)

    def layer(index: int) -> LayerSpec:
        windows = config.use_sliding_window and config.layer_types[index] == "sliding_attention"
        window = config.sliding_window if windows else None
        attention = attention_of(config, bias=bias, window=window)
        return LayerSpec(attention if config.no_rope_layers[index] else replace(attention, rope=None), mlp)

    return decoder_of(config, layer)


def granite(config: Any) -> TransformerSpec:
    """Llama with factors for embeddings, scores, branches and logits."""
    attention = attention_of(config, scale=config.attention_multiplier, bias=config.attention_bias)
    return decoder_of(
        config,
        LayerSpec(attention, mlp_of(config, bias=config.mlp_bias)),
        entry=EntrySpec(config.vocab_size, scale=config.embedding_multiplier, scales_media=True),
        head=HeadSpec(scale=1 / config.logits_scaling),
        branch_scale=config.residual_multiplier,
    )


def granite_swa(config: Any) -> TransformerSpec:
    """Granite with sinks, windows on some layers, and a rope for each layer, or none."""
    spec = granite(config)
    layers = (
        replace(layer, mixer=with_own_rope(layer.attention, config, index)) for index, layer in enumerate(spec.layers)
    )
    return replace(spec, layers=tuple(layers))


def with_own_rope(attention: AttentionSpec, config: Any, index: int) -> AttentionSpec:
    """Return a layer's attention as granite's with windows have it."""
    theta, rope = config.layer_rope_theta[index], attention.rope
    assert rope is not None
    own = replace(rope, theta=theta) if theta else None
    return replace(attention, rope=own, window=typed_layer(config, index)["window"], sinks=True)


HYPERCLOVAX_NAMES: Mapping[str, str] = {
    **NAMES,
    "norm1_after": "model.layers.{i}.post_norm1",
    "norm2_after": "model.layers.{i}.post_norm2",
}


def hyperclovax(config: Any) -> TransformerSpec:
    """Granite whose logits are multiplied, in most with norms behind its branches too."""
    spec = replace(granite(config), head=HeadSpec(scale=config.logits_scaling))
    if not config.use_post_norm:
        return spec
    if config.residual_multiplier != 1:
        raise ModelError(
            f"residual_multiplier={config.residual_multiplier} with use_post_norm: scaled norms behind branches are not "
            "supported; use model_impl='transformers'"
        )
    layers = tuple(replace(layer, block="sandwich") for layer in spec.layers)
    return replace(spec, layers=layers, names=HYPERCLOVAX_NAMES)


def glm(config: Any) -> TransformerSpec:
    """Llama with half of each head rotated, by neighbours, and biases on q, k and v."""
    attention = neighbours(attention_of(config, qkv_bias=config.attention_bias))
    return decoder_of(config, LayerSpec(attention, mlp_of(config, layout="gate_up")))


def glm4(config: Any) -> TransformerSpec:
    """Glm with norms before and after its branches."""
    spec = glm(config)
    layers = tuple(replace(layer, block="sandwich") for layer in spec.layers)
    return replace(spec, layers=layers, names=GLM4_NAMES)


def olmo(config: Any) -> TransformerSpec:
    """Llama with norms that have no weights."""
    attention = attention_of(config, bias=config.attention_bias, clip=config.clip_qkv)
    return decoder_of(config, LayerSpec(attention, mlp_of(config)), NormSpec("layer", 1e-5, affine=False))


def olmo2(config: Any) -> TransformerSpec:
    """Llama with norms behind its branches, and on q and k as a whole; olmo3 has windows on some layers."""
    bias, mlp = config.attention_bias, mlp_of(config)

    def layer(index: int) -> LayerSpec:
        attention = attention_of(config, head_norm="all", bias=bias, **typed_layer(config, index))
        return LayerSpec(attention, mlp, "after")

    return decoder_of(config, layer, names=AFTER_NAMES)


def exaone4(config: Any) -> TransformerSpec:
    """Llama with norms behind its branches and on the heads of q and k; where others have windows, the rest knows no
    positions."""
    mlp = mlp_of(config)
    return decoder_of(
        config, lambda index: LayerSpec(exaone4_attention(config, index), mlp, "after"), names=AFTER_NAMES
    )


def exaone4_attention(config: Any, index: int) -> AttentionSpec:
    """Return a layer's attention as exaone 4 has it, with and without experts."""
    attention = attention_of(config, head_norm="head", **typed_layer(config, index))
    sees_all = config.sliding_window is not None and attention.window is None
    return replace(attention, rope=None) if sees_all else attention


def nemotron(config: Any) -> TransformerSpec:
    """Layer norms whose weights are stored less one, part of each head rotated, a feed-forward without a gate."""
    return decoder_of(config, _ungated(config), NormSpec("layer", config.norm_eps, offset=1.0))


def jais2(config: Any) -> TransformerSpec:
    """Llama with layer norms, biases, and a feed-forward without a gate."""
    return decoder_of(config, _ungated(config), NormSpec("layer", config.layer_norm_eps))


def stablelm(config: Any) -> TransformerSpec:
    """Llama with layer norms and part of each head rotated."""
    if config.qk_layernorm:
        raise ModelError(
            "qk_layernorm=True: a stablelm with a norm per head is not supported; use model_impl='transformers'"
        )
    block = "parallel_one" if config.use_parallel_residual else "pre"
    layer = LayerSpec(attention_of(config, qkv_bias=config.use_qkv_bias), mlp_of(config), block)  # type: ignore[arg-type]
    return decoder_of(config, layer, norm=NormSpec("layer", config.layer_norm_eps))


def cohere(config: Any) -> TransformerSpec:
    """Both branches under one layer norm without bias; pairs of rotated elements are neighbours; logits are scaled.  The large one has
    a norm of its own on each head of q and k."""
    norm = NormSpec("layer", config.layer_norm_eps, bias=False)
    own_norms = norm if config.use_qk_norm else None
    attention = neighbours(attention_of(config, bias=config.attention_bias, own_norms=own_norms))
    layer = LayerSpec(attention, mlp_of(config), "parallel_one")
    return decoder_of(config, layer, norm, head=HeadSpec(scale=config.logit_scale))


def cohere2(config: Any) -> TransformerSpec:
    """Cohere with windows on some layers; those without know no positions."""
    bias, mlp = config.attention_bias, mlp_of(config)

    def layer(index: int) -> LayerSpec:
        window = config.sliding_window if config.layer_types[index] == "sliding_attention" else None
        attention = neighbours(attention_of(config, bias=bias, window=window))
        return LayerSpec(attention if window else replace(attention, rope=None), mlp, "parallel_one")

    norm = NormSpec("layer", config.layer_norm_eps, bias=False)
    return decoder_of(config, layer, norm, head=HeadSpec(scale=config.logit_scale))


def neighbours(attention: AttentionSpec) -> AttentionSpec:
    """Let pairs of rotated elements be neighbours."""
    assert attention.rope is not None
    return replace(attention, rope=replace(attention.rope, interleaved=True))


def _ungated(config: Any) -> LayerSpec:
    attention = attention_of(config, bias=config.attention_bias)
    return LayerSpec(attention, mlp_of(config, bias=config.mlp_bias, gated=False))
