"""Molmo2: qwen3 or olmo2 under other names, whose table has more tokens than its vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vllm.layers.rotary import Rope, Unstretched
from vllm.models.families.llama import attention_of, decoder_of, mlp_of
from vllm.models.spec import EntrySpec, LayerSpec, TransformerSpec

_BLOCK = "model.transformer.blocks.{i}"
MOLMO2_NAMES: Mapping[str, str] = {
    "embed": "model.transformer.wte.embedding",
    "embed_unwritten": "model.transformer.wte.new_embedding",
    "norm": "model.transformer.ln_f",
    "head": "lm_head",
    "norm1": f"{_BLOCK}.attn_norm",
    "norm2": f"{_BLOCK}.ff_norm",
    "norm1_after": f"{_BLOCK}.attn_norm",
    "norm2_after": f"{_BLOCK}.ff_norm",
    "qkv": f"{_BLOCK}.self_attn.att_proj",
    "q_norm": f"{_BLOCK}.self_attn.q_norm",
    "k_norm": f"{_BLOCK}.self_attn.k_norm",
    "o": f"{_BLOCK}.self_attn.attn_out",
    "gate_up": f"{_BLOCK}.mlp.ff_proj",
    "down": f"{_BLOCK}.mlp.ff_out",
}


def molmo2(config: Any) -> TransformerSpec:
    """Norms of single heads or of all together, before branches or behind them; the rope of some layers may not be stretched."""
    norm = "head" if config.qk_norm_type == "qwen3" else "all"
    stretched = attention_of(config, head_norm=norm, qkv_bias=config.attention_bias, layout="concat")
    plain = replace(stretched, rope=Rope(config.rope_parameters["rope_theta"], config.head_dim, Unstretched()))
    mlp = replace(mlp_of(config), layout="up_gate")

    def layer(index: int) -> LayerSpec:
        attention = stretched if index in config.rope_scaling_layers else plain
        return LayerSpec(attention, mlp, "after" if config.norm_after else "pre")

    entry = EntrySpec(config.vocab_size, unwritten=config.additional_vocab_size)
    return decoder_of(config, layer, names=MOLMO2_NAMES, entry=entry)
