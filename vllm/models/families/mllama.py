"""Mllama: llama with layers that attend to pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.models.families.llama import NAMES, attention_of, decoder_of, mlp_of
from vllm.models.spec import EntrySpec, LayerSpec, TransformerSpec

MLLAMA_NAMES: Mapping[str, str] = {
    **NAMES,
    "cross_q": "model.layers.{i}.cross_attn.q_proj",
    "cross_k": "model.layers.{i}.cross_attn.k_proj",
    "cross_v": "model.layers.{i}.cross_attn.v_proj",
    "cross_o": "model.layers.{i}.cross_attn.o_proj",
    "cross_q_norm": "model.layers.{i}.cross_attn.q_norm",
    "cross_k_norm": "model.layers.{i}.cross_attn.k_norm",
    "cross_gate": "model.layers.{i}.cross_attn_attn_gate",
    "ffn_gate": "model.layers.{i}.cross_attn_mlp_gate",
}


def mllama(config: Any) -> TransformerSpec:
    """Llama whose table has 8 tokens more than its vocabulary, and some of whose layers attend to pictures."""
    mlp = mlp_of(config)
    own = LayerSpec(attention_of(config), mlp)
    cross = LayerSpec(None, mlp, "pictures", cross=attention_of(config, rope=None))
    return decoder_of(
        config,
        lambda index: cross if index in config.cross_attention_layers else own,
        names=MLLAMA_NAMES,
        entry=EntrySpec(config.vocab_size, unwritten=8),
    )
