"""The llama line: rms norms, rotary positions, gated feed-forward, no biases unless asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from vllm.models.rope import rope_of
from vllm.models.spec import AttentionSpec, EntrySpec, LayerSpec, MlpSpec, NormSpec, TransformerSpec

NAMES: Mapping[str, str] = {
    "embed": "model.embed_tokens",
    "norm": "model.norm",
    "head": "lm_head",
    "norm1": "model.layers.{i}.input_layernorm",
    "norm2": "model.layers.{i}.post_attention_layernorm",
    "q": "model.layers.{i}.self_attn.q_proj",
    "k": "model.layers.{i}.self_attn.k_proj",
    "v": "model.layers.{i}.self_attn.v_proj",
    "qkv": "model.layers.{i}.self_attn.qkv_proj",
    "o": "model.layers.{i}.self_attn.o_proj",
    "sinks": "model.layers.{i}.self_attn.sinks",
    "q_norm": "model.layers.{i}.self_attn.q_norm",
    "k_norm": "model.layers.{i}.self_attn.k_norm",
    "gate": "model.layers.{i}.mlp.gate_proj",
    "up": "model.layers.{i}.mlp.up_proj",
    "gate_up": "model.layers.{i}.mlp.gate_up_proj",
    "down": "model.layers.{i}.mlp.down_proj",
}


def llama(config: Any) -> TransformerSpec:
    """Llama 1 to 3 and what was made in their image."""
    layer = LayerSpec(attention_of(config, bias=config.attention_bias), mlp_of(config, bias=config.mlp_bias))
    return decoder_of(config, layer)


def internlm3(config: Any) -> TransformerSpec:
    """Llama with biases."""
    attention = attention_of(config, qkv_bias=config.qkv_bias, out_bias=config.bias)
    return decoder_of(config, LayerSpec(attention, mlp_of(config, bias=config.bias)))


def eurobert(config: Any) -> TransformerSpec:
    """Llama as an encoder: every token sees all of its text."""
    spec = llama(config)
    attention = replace(spec.layers[0].attention, causal=False)
    return replace(spec, layers=tuple(replace(layer, mixer=attention) for layer in spec.layers))


def mistral(config: Any) -> TransformerSpec:
    """Llama with a window on every layer, if there is one."""
    return decoder_of(config, LayerSpec(attention_of(config, window=config.sliding_window), mlp_of(config)))


def qwen2(config: Any) -> TransformerSpec:
    """Llama with biases on q, k and v, and windows by layer type."""
    mlp = mlp_of(config)

    def layer(index: int) -> LayerSpec:
        return LayerSpec(attention_of(config, qkv_bias=True, **typed_layer(config, index)), mlp)

    return decoder_of(config, layer)


def qwen3(config: Any) -> TransformerSpec:
    """Qwen2 with norms on the heads of q and k instead of biases."""
    mlp, bias = mlp_of(config), config.attention_bias

    def layer(index: int) -> LayerSpec:
        return LayerSpec(attention_of(config, head_norm="head", bias=bias, **typed_layer(config, index)), mlp)

    return decoder_of(config, layer)


def phi3(config: Any) -> TransformerSpec:
    """Mistral with fused tensors."""
    attention = attention_of(config, window=config.sliding_window, layout="concat")
    return decoder_of(config, LayerSpec(attention, mlp_of(config, layout="gate_up")))


def decoder_of(
    config: Any, layer: LayerSpec | Callable[[int], LayerSpec], norm: NormSpec | None = None, **fields: Any
) -> TransformerSpec:
    """Return a decoder of the llama line, each of whose layers `layer` is or makes; `norm` and `fields` replace its fields."""
    spec = TransformerSpec(
        EntrySpec(config.vocab_size),
        config.hidden_size,
        tuple(layer if isinstance(layer, LayerSpec) else layer(index) for index in range(config.num_hidden_layers)),
        norm or NormSpec("rms", config.rms_norm_eps),
        NAMES,
        getattr(config, "tie_word_embeddings", False),  # where it is a part of a model, the whole model says so
    )
    return replace(spec, **fields)


def attention_of(config: Any, layer_type: str | None = None, *, bias: bool = False, **fields: Any) -> AttentionSpec:
    """Return an attention of the llama line; `bias` is that of all its products, `fields` replace its fields."""
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    rope = fields["rope"] if "rope" in fields else rope_of(config, head_dim, layer_type)
    spec = AttentionSpec(heads, kv_heads, head_dim, head_dim**-0.5, rope, qkv_bias=bias, out_bias=bias)
    return replace(spec, **fields)


def typed_layer(config: Any, index: int) -> dict[str, Any]:
    """Return what the type of a layer says about its attention: its rope and its window."""
    layer_type = (getattr(config, "layer_types", None) or {index: "full_attention"})[index]
    return {"layer_type": layer_type, "window": config.sliding_window if layer_type == "sliding_attention" else None}


def mlp_of(config: Any, *, bias: bool = False, **fields: Any) -> MlpSpec:
    """Return a feed-forward of the llama line; `bias` is that of all its products, `fields` replace its fields."""
    spec = MlpSpec(config.intermediate_size, config.hidden_act, up_bias=bias, down_bias=bias)
    return replace(spec, **fields)
