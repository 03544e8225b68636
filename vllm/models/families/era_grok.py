"""Grok 1, as it was published for torch: experts between norms, scores and sums kept within bounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.models.families.era import known
from vllm.models.families.llama import NAMES, attention_of, decoder_of
from vllm.models.spec import EntrySpec, HeadSpec, LayerSpec, MoeSpec, NormSpec, TransformerSpec

_LAYER = "model.layers.{i}"
GROK_NAMES: Mapping[str, str] = {
    **NAMES,
    **{role: f"{_LAYER}.attn.{role}_proj" for role in "qkvo"},
    "norm1": f"{_LAYER}.pre_attn_norm",
    "norm1_after": f"{_LAYER}.post_attn_norm",
    "norm2": f"{_LAYER}.pre_moe_norm",
    "norm2_after": f"{_LAYER}.post_moe_norm",
    "router": f"{_LAYER}.moe_block.gate",
    "expert_gate": f"{_LAYER}.moe_block.experts.{{x}}.linear",
    "expert_up": f"{_LAYER}.moe_block.experts.{{x}}.linear_v",
    "expert_down": f"{_LAYER}.moe_block.experts.{{x}}.linear_1",
}


def grok(config: Any) -> TransformerSpec:
    """Mixtral between norms, with factors for embeddings, scores and logits; experts' weights don't sum to 1."""
    config = known(config)
    attention = attention_of(config, scale=config.attn_output_multiplier, softcap=config.max_attn_value)
    experts = (config.num_experts, config.num_experts_per_tok, config.intermediate_size)
    moe = MoeSpec(*experts, "gelu_pytorch_tanh", renormalize=False)
    return decoder_of(
        config,
        LayerSpec(attention, moe, "sandwich"),
        NormSpec("rms", config.rms_norm_eps, ending="scale"),
        names=GROK_NAMES,
        entry=EntrySpec(config.vocab_size, scale=config.embedding_multiplier_scale),
        head=HeadSpec(scale=config.output_multiplier_scale),
    )
