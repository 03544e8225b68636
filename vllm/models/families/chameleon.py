"""Chameleon: llama that reads pictures as tokens of its own vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vllm.errors import ModelError
from vllm.models.families.llama import NAMES, attention_of, decoder_of, mlp_of
from vllm.models.spec import HeadSpec, LayerSpec, NormSpec, TransformerSpec

CHAMELEON_NAMES: Mapping[str, str] = {**NAMES, "norm1_after": NAMES["norm1"], "norm2_after": NAMES["norm2"]}


def chameleon(config: Any) -> TransformerSpec:
    """Llama with a norm of its own on each head of q and k, which writes no pictures; the large one has norms behind branches."""
    if not config.vocabulary_map:
        raise ModelError(
            "vocabulary_map is missing in the config, which says what tokens pictures are; add the checkpoint's"
        )
    bias, mlp_bias = config.attention_bias, config.mlp_bias
    attention = attention_of(config, own_norms=NormSpec("layer", 1e-5), qkv_bias=bias, out_bias=bias)
    mlp = replace(mlp_of(config), up_bias=mlp_bias, down_bias=mlp_bias)
    layer = LayerSpec(attention, mlp, "after" if config.swin_norm else "pre")
    pictures = sorted(token for name, token in config.vocabulary_map.items() if name.startswith("IMGIMG"))
    return decoder_of(config, lambda index: layer, names=CHAMELEON_NAMES, head=HeadSpec(never=tuple(pictures)))
