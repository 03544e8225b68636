"""Llama as others wrote it down: fairseq2, TeleFLM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vllm.models.families.era import known
from vllm.models.families.kin import neighbours
from vllm.models.families.llama import llama
from vllm.models.spec import EntrySpec, HeadSpec, TransformerSpec

FAIRSEQ2_NAMES: Mapping[str, str] = {
    "embed": "decoder_frontend.embed",
    "norm": "decoder.layer_norm",
    "head": "final_proj",
    "norm1": "decoder.layers.{i}.self_attn_layer_norm",
    "norm2": "decoder.layers.{i}.ffn_layer_norm",
    "q": "decoder.layers.{i}.self_attn.q_proj",
    "k": "decoder.layers.{i}.self_attn.k_proj",
    "v": "decoder.layers.{i}.self_attn.v_proj",
    "o": "decoder.layers.{i}.self_attn.output_proj",
    "gate": "decoder.layers.{i}.ffn.gate_proj",
    "up": "decoder.layers.{i}.ffn.inner_proj",
    "down": "decoder.layers.{i}.ffn.output_proj",
}


def fairseq2(config: Any) -> TransformerSpec:
    """Llama under other names, whose pairs of rotated elements are neighbours."""
    spec = llama(config)
    layers = tuple(replace(layer, mixer=neighbours(layer.attention)) for layer in spec.layers)
    return replace(spec, layers=layers, names=FAIRSEQ2_NAMES, base_prefix="")


def teleflm(config: Any) -> TransformerSpec:
    """Llama with muP's factors for embeddings and logits."""
    config = known(config)
    spec = llama(config)
    if not config.use_mup:
        return spec
    entry = EntrySpec(config.vocab_size, scale=config.input_mult)
    return replace(spec, entry=entry, head=HeadSpec(scale=config.output_mult / config.mup_scale_factor))
