"""Gemma: rms norms around 1, scaled embeddings, and from gemma2 on norms before and after each branch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vllm.errors import ModelError
from vllm.models.families.llama import NAMES, attention_of, decoder_of, typed_layer
from vllm.models.spec import AttentionSpec, EntrySpec, HeadSpec, LayerSpec, MlpSpec, NormSpec, TransformerSpec

SANDWICH_NAMES: Mapping[str, str] = {
    **NAMES,
    "norm1_after": "model.layers.{i}.post_attention_layernorm",
    "norm2": "model.layers.{i}.pre_feedforward_layernorm",
    "norm2_after": "model.layers.{i}.post_feedforward_layernorm",
}


def gemma(config: Any) -> TransformerSpec:
    """The first gemma: llama with other norms and scaled embeddings."""
    _refuse_bidirectional(config)
    layer = LayerSpec(_attention(config), MlpSpec(config.intermediate_size, config.hidden_act))
    return _decoder(config, (layer,) * config.num_hidden_layers)


def gemma2(config: Any) -> TransformerSpec:
    """Four norms per layer, capped scores and logits, a window on every other layer."""
    _refuse_bidirectional(config)
    softcap = config.attn_logit_softcapping or 0.0
    layers = _sandwiches(config, softcap=softcap)
    return _decoder(config, layers, names=SANDWICH_NAMES)


def vaultgemma(config: Any) -> TransformerSpec:
    """Gemma2 without norms behind its branches."""
    layers = _sandwiches(config, softcap=config.attn_logit_softcapping or 0.0)
    return _decoder(config, tuple(replace(layer, block="pre") for layer in layers), names=SANDWICH_NAMES)


def gemma3(config: Any) -> TransformerSpec:
    """Gemma2 with norms on the heads of q and k instead of capped scores, and another rope where there is a window.

    One that embeds sees what is behind a token too, as far as its window reaches.
    """
    layers = _sandwiches(config, head_norm="head", causal=not config.use_bidirectional_attention)
    return _decoder(config, layers, names=SANDWICH_NAMES)


def _decoder(config: Any, layers: tuple[LayerSpec, ...], **fields: Any) -> TransformerSpec:
    return decoder_of(
        config,
        lambda index: layers[index],
        norm=NormSpec("rms", config.rms_norm_eps, offset=1.0),
        entry=EntrySpec(config.vocab_size, scale=config.hidden_size**0.5),
        head=HeadSpec(softcap=getattr(config, "final_logit_softcapping", None) or 0.0),
        **fields,
    )


def _refuse_bidirectional(config: Any) -> None:
    if config.use_bidirectional_attention:
        raise ModelError(
            f"use_bidirectional_attention={config.use_bidirectional_attention}: what that means for the windows of this "
            "gemma is not settled; only gemma3 has it"
        )


def _sandwiches(config: Any, **fields: Any) -> tuple[LayerSpec, ...]:
    mlp = MlpSpec(config.intermediate_size, config.hidden_activation)
    scale = config.query_pre_attn_scalar**-0.5
    return tuple(
        LayerSpec(_attention(config, scale=scale, **typed_layer(config, index), **fields), mlp, "sandwich")
        for index in range(config.num_hidden_layers)
    )


def _attention(config: Any, **fields: Any) -> AttentionSpec:
    return attention_of(config, bias=config.attention_bias, **fields)
