"""Text parts that differ from the architecture that they are otherwise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vllm.models.families import kin, moe
from vllm.models.spec import HeadSpec, TransformerSpec


def cohere2(config: Any) -> TransformerSpec:
    """Cohere2 without a scale of its logits."""
    return replace(kin.cohere2(config), head=HeadSpec())


def glm4(config: Any) -> TransformerSpec:
    """Glm4 with biases on q, k and v."""
    config.attention_bias = True
    return kin.glm4(config)


def qwen3_moe(config: Any) -> TransformerSpec:
    """Qwen3 with experts, whose weights always add up to 1."""
    config.norm_topk_prob = True
    config.mlp_only_layers = getattr(config, "mlp_only_layers", None) or []
    config.sliding_window = None
    return moe.qwen3_moe(config)
