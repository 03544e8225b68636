"""Motif 2.6B: llama whose heads are pairs, and whose gates are polynomials."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vllm.errors import ModelError
from vllm.models.families.era import known, refuse_set
from vllm.models.families.llama import NAMES, attention_of, decoder_of, mlp_of
from vllm.models.spec import LayerSpec, PairsSpec, TransformerSpec

_ATTENTION = "model.layers.{i}.self_attn"
MOTIF_NAMES: Mapping[str, str] = {
    **NAMES,
    "pair_norm": f"{_ATTENTION}.subln",
    "pair_q1": f"{_ATTENTION}.lambda_q1",
    "pair_k1": f"{_ATTENTION}.lambda_k1",
    "pair_q2": f"{_ATTENTION}.lambda_q2",
    "pair_k2": f"{_ATTENTION}.lambda_k2",
    "poly": "model.layers.{i}.mlp.act_fn",
}


def motif(config: Any) -> TransformerSpec:
    """What a pair's second head finds counts less in the first layers."""
    _refuse_others(config)
    config = known(config)
    attention = attention_of(config)
    mlp = mlp_of(config, poly_eps=1e-6)

    def layer(index: int) -> LayerSpec:
        pairs = PairsSpec(0.8 - 0.6 * math.exp(-0.3 * (index - 1)), config.attn_rms_norm_eps)
        return LayerSpec(replace(attention, pairs=pairs), mlp)

    return decoder_of(config, layer, names=MOTIF_NAMES)


def _refuse_others(config: Any) -> None:
    if config.hidden_act != "poly_norm":
        raise ModelError(f"hidden_act={config.hidden_act!r}: of motif, those with 'poly_norm' are supported")
    variants = ("attention_bias", "num_noise_heads", "qkv_bias", "use_bias", "use_sliding_window")
    refuse_set(config, variants, "a motif with it is not supported; Motif 2.6B is one without")
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    if heads % 2 or kv_heads % 2:
        raise ModelError(f"num_attention_heads={heads}, num_key_value_heads={kv_heads}: motif's heads are pairs")
