"""Chameleon: llama that reads pictures as tokens of its own vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
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
    attention = attention_of(config, own_norms=NormSpec("layer", 1e-5), bias=config.attention_bias)
    layer = LayerSpec(attention, mlp_of(config, bias=config.mlp_bias), "after" if config.swin_norm else "pre")
    pictures = sorted(token for name, token in config.vocabulary_map.items() if name.startswith("IMGIMG"))
    return decoder_of(config, layer, names=CHAMELEON_NAMES, head=HeadSpec(never=tuple(pictures)))
