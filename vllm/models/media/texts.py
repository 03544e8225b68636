"""Text parts that differ from the architecture that they are otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vllm.errors import ModelError
from vllm.models.families import era, kin, moe
from vllm.models.families.chameleon import chameleon
from vllm.models.families.llama import attention_of, decoder_of, mlp_of
from vllm.models.families.mllama import mllama
from vllm.models.families.molmo2 import molmo2
from vllm.models.spec import HeadSpec, LayerSpec, MoeSpec, TransformerSpec

__all__ = [
    "aria",
    "chameleon",
    "chatglm",
    "cohere2",
    "glm4",
    "glm4_moe",
    "mllama",
    "molmo",
    "molmo2",
    "named",
    "qwen3_moe",
]

ARIA_NAMES: Mapping[str, str] = {
    **moe.QWEN_NAMES,
    "router": "model.layers.{i}.mlp.router",
    "shared_gate": "model.layers.{i}.mlp.shared_experts.gate_proj",
    "shared_up": "model.layers.{i}.mlp.shared_experts.up_proj",
    "shared_down": "model.layers.{i}.mlp.shared_experts.down_proj",
}

MOLMO_NAMES: Mapping[str, str] = {
    "embed": "model.transformer.wte.embedding",
    "norm": "model.transformer.ln_f",
    "head": "model.transformer.ff_out",
    **dict.fromkeys(("norm1", "norm1_after"), "model.transformer.blocks.{i}.attn_norm"),
    **dict.fromkeys(("norm2", "norm2_after"), "model.transformer.blocks.{i}.ff_norm"),
    "qkv": "model.transformer.blocks.{i}.att_proj",
    "q_norm": "model.transformer.blocks.{i}.q_norm",
    "k_norm": "model.transformer.blocks.{i}.k_norm",
    "o": "model.transformer.blocks.{i}.attn_out",
    "gate_up": "model.transformer.blocks.{i}.ff_proj",
    "down": "model.transformer.blocks.{i}.ff_out",
}


def aria(config: Any) -> TransformerSpec:
    """Llama with experts, and some that every token passes."""
    bias = config.attention_bias
    attention = attention_of(config, bias=bias)
    experts = (config.moe_num_experts, config.moe_topk, config.intermediate_size)
    shared_width = config.moe_num_shared_experts * config.intermediate_size
    layer = LayerSpec(attention, MoeSpec(*experts, config.hidden_act, renormalize=True, shared_width=shared_width))
    return decoder_of(config, layer, names=ARIA_NAMES)


def chatglm(config: Any) -> TransformerSpec:
    """Glm of which several tokens may have one position."""
    spec = era.chatglm(config)
    mixer = spec.layers[0].attention
    assert mixer.rope is not None
    told = replace(mixer, rope=replace(mixer.rope, sections=(mixer.rope.width // 2, 0, 0)))
    return replace(spec, layers=tuple(replace(layer, mixer=told) for layer in spec.layers))


def glm4_moe(config: Any) -> TransformerSpec:
    """Glm4 with experts, without norms on q and k."""
    config.use_qk_norm = False
    return moe.glm4_moe(config)


def named(config: Any) -> TransformerSpec:
    """What the text part says that it is."""
    from vllm.models.registry import family_of

    (name,) = config.architectures
    family = family_of(name)
    if family is None:
        raise ModelError(f"a text part that is a {name} is of no family here")
    return family(config)  # type: ignore[no-any-return]


def cohere2(config: Any) -> TransformerSpec:
    """Cohere2 without a scale of its logits."""
    return replace(kin.cohere2(config), head=HeadSpec())


def glm4(config: Any) -> TransformerSpec:
    """Glm4 with biases on q, k and v."""
    config.attention_bias = True
    return kin.glm4(config)


def molmo(config: Any) -> TransformerSpec:
    """Qwen2 or olmo2 with fused tensors, in which the gate comes last."""
    norms = "all" if config.has_head_norms else ""
    attention = attention_of(config, qkv_bias=config.attention_bias, layout="concat", head_norm=norms)
    layer = LayerSpec(attention, replace(mlp_of(config), layout="up_gate"), "after" if config.norm_after else "pre")
    return decoder_of(config, lambda index: layer, names=MOLMO_NAMES)


def qwen3_moe(config: Any) -> TransformerSpec:
    """Qwen3 with experts, whose weights always add up to 1."""
    config.norm_topk_prob = True
    config.mlp_only_layers = getattr(config, "mlp_only_layers", None) or []
    config.sliding_window = None
    return moe.qwen3_moe(config)
