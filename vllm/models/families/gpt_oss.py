"""Gpt-oss: attention with sinks, windows on every other layer, and experts whose gates are bounded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.errors import ModelError
from vllm.models.families.llama import NAMES, attention_of, decoder_of, typed_layer
from vllm.models.spec import LayerSpec, MoeSpec, TransformerSpec
from vllm.ops.activations import Clamp

GPT_OSS_NAMES: Mapping[str, str] = {
    **NAMES,
    "router": "model.layers.{i}.mlp.router",
    "experts_gate_up": "model.layers.{i}.mlp.experts.gate_up_proj",
    "experts_down": "model.layers.{i}.mlp.experts.down_proj",
}
_GATE = 1.702
"""What a gate is multiplied with before its sigmoid; with that it is an activation which has a name"""


def gpt_oss(config: Any) -> TransformerSpec:
    """Experts are chosen by their scores and weighed by the softmax over the chosen ones, as if it were over all."""
    moe, bias = _experts(config), config.attention_bias

    def layer(index: int) -> LayerSpec:
        window = typed_layer(config, index)["window"]
        return LayerSpec(attention_of(config, window=window, sinks=True, bias=bias), moe)

    return decoder_of(config, layer, names=GPT_OSS_NAMES)


def _experts(config: Any) -> MoeSpec:
    if getattr(config, "swiglu_alpha", _GATE) != _GATE:
        raise ModelError(f"swiglu_alpha={config.swiglu_alpha} is not supported; use a checkpoint with {_GATE}")
    return MoeSpec(
        *(config.num_local_experts, config.num_experts_per_tok, config.intermediate_size),
        "quick_gelu",
        renormalize=True,
        layout="mxfp4" if getattr(config, "quantization_config", None) else "turns",
        bias=True,
        router_bias=True,
        clamp=Clamp(config.swiglu_limit, offset=1.0),
    )
