"""Llama 4: attention within chunks, layers without positions between them, and experts that read a token times its weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vllm.layers.rotary import Tempering
from vllm.models.families.kin import neighbours
from vllm.models.families.llama import NAMES, attention_of, decoder_of, mlp_of
from vllm.models.spec import AttentionSpec, LayerSpec, MoeSpec, TransformerSpec

_FFN = "model.layers.{i}.feed_forward"
LLAMA4_NAMES: Mapping[str, str] = {
    **NAMES,
    "gate": f"{_FFN}.gate_proj",
    "up": f"{_FFN}.up_proj",
    "down": f"{_FFN}.down_proj",
    "router": f"{_FFN}.router",
    "experts_gate_up": f"{_FFN}.experts.gate_up_proj",
    "experts_down": f"{_FFN}.experts.down_proj",
    "shared_gate": f"{_FFN}.shared_expert.gate_proj",
    "shared_up": f"{_FFN}.shared_expert.up_proj",
    "shared_down": f"{_FFN}.shared_expert.down_proj",
}


def llama4(config: Any) -> TransformerSpec:
    """Layers with positions attend within chunks, those without to everything; some layers have no experts."""
    moe, mlp = _experts(config), mlp_of(config, width=config.intermediate_size_mlp)

    def layer(index: int) -> LayerSpec:
        return LayerSpec(_attention(config, index), moe if index in config.moe_layers else mlp)

    return decoder_of(config, layer, names=LLAMA4_NAMES)


def _experts(config: Any) -> MoeSpec:
    width = config.intermediate_size
    return MoeSpec(
        *(config.num_local_experts, config.num_experts_per_tok, width, config.hidden_act),
        renormalize=False,
        shared_width=width,
        scores="sigmoid",
        layout="transposed",
        weighs_input=True,
    )


def _attention(config: Any, index: int) -> AttentionSpec:
    is_chunked = config.layer_types[index] == "chunked_attention"
    chunk = config.attention_chunk_size if is_chunked else None
    attention = attention_of(config, bias=config.attention_bias, chunk=chunk)
    if not config.no_rope_layers[index]:
        tempering = Tempering(config.floor_scale, config.attn_scale, offset=1)
        return replace(attention, rope=None, tempering=tempering if config.attn_temperature_tuning else None)
    # a rotation changes no length, so it doesn't matter that they are normalised behind it
    return replace(neighbours(attention), head_norm="plain" if config.use_qk_norm else "")
