"""The GPT line: layer norms, biases, a feed-forward without a gate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from vllm.errors import ModelError
from vllm.models.families.llama import decoder_of
from vllm.models.rope import rope_of
from vllm.models.spec import AttentionSpec, EntrySpec, LayerSpec, MlpSpec, NormSpec, PositionsSpec, TransformerSpec

GPT2_NAMES: Mapping[str, str] = {
    "embed": "transformer.wte",
    "positions": "transformer.wpe",
    "norm": "transformer.ln_f",
    "head": "lm_head",
    "norm1": "transformer.h.{i}.ln_1",
    "norm2": "transformer.h.{i}.ln_2",
    "qkv": "transformer.h.{i}.attn.c_attn",
    "o": "transformer.h.{i}.attn.c_proj",
    "up": "transformer.h.{i}.mlp.c_fc",
    "down": "transformer.h.{i}.mlp.c_proj",
}

OPT_NAMES: Mapping[str, str] = {
    "embed": "model.decoder.embed_tokens",
    "positions": "model.decoder.embed_positions",
    "project_in": "model.decoder.project_in",
    "norm": "model.decoder.final_layer_norm",
    "project_out": "model.decoder.project_out",
    "head": "lm_head",
    "norm1": "model.decoder.layers.{i}.self_attn_layer_norm",
    "norm2": "model.decoder.layers.{i}.final_layer_norm",
    "q": "model.decoder.layers.{i}.self_attn.q_proj",
    "k": "model.decoder.layers.{i}.self_attn.k_proj",
    "v": "model.decoder.layers.{i}.self_attn.v_proj",
    "o": "model.decoder.layers.{i}.self_attn.out_proj",
    "up": "model.decoder.layers.{i}.fc1",
    "down": "model.decoder.layers.{i}.fc2",
}

GPT_NEOX_NAMES: Mapping[str, str] = {
    "embed": "gpt_neox.embed_in",
    "norm": "gpt_neox.final_layer_norm",
    "head": "embed_out",
    "norm1": "gpt_neox.layers.{i}.input_layernorm",
    "norm2": "gpt_neox.layers.{i}.post_attention_layernorm",
    "qkv": "gpt_neox.layers.{i}.attention.query_key_value",
    "o": "gpt_neox.layers.{i}.attention.dense",
    "up": "gpt_neox.layers.{i}.mlp.dense_h_to_4h",
    "down": "gpt_neox.layers.{i}.mlp.dense_4h_to_h",
}

ATTN_MASKS = ("*.attn.bias", "*.attn.masked_bias")
CAUSAL_MASKS = (*ATTN_MASKS, "*.attention.bias", "*.attention.masked_bias")
"""Old checkpoints store the causal mask of each layer."""


def gpt2(config: Any) -> TransformerSpec:
    """Gpt2; the scale of scores may fall from layer to layer."""
    if config.add_cross_attention:
        raise ModelError("add_cross_attention=True: a gpt2 that attends to an encoder is not supported")
    attention, mlp = gpt2_attention(config, layout="concat"), gpt2_mlp(config)

    def layer(index: int) -> LayerSpec:
        divisor = index + 1 if config.scale_attn_by_inverse_layer_idx else 1
        return LayerSpec(replace(attention, scale=attention.scale / divisor), mlp)

    entry = EntrySpec(config.vocab_size, positions=PositionsSpec(config.n_positions))
    return gpt2_decoder(config, layer, GPT2_NAMES, entry=entry, transposed=True, ignored_names=CAUSAL_MASKS)


def opt(config: Any) -> TransformerSpec:
    """Opt; the 350m one has its norms after the branches and narrower embeddings."""
    bias, norm_first = config.enable_bias, config.do_layer_norm_before
    attention = multi_head(config.hidden_size, config.num_attention_heads, bias=bias)
    mlp = plain_mlp(config.ffn_dim, config.activation_function, bias=bias)
    return decoder_of(
        config,
        LayerSpec(attention, mlp, "pre" if norm_first else "post"),
        NormSpec("layer", 1e-5, affine=config.layer_norm_elementwise_affine),
        entry=_opt_entry(config),
        names=OPT_NAMES,
        final_norm=norm_first and not config._remove_final_layer_norm,
    )


def _opt_entry(config: Any) -> EntrySpec:
    width = None if config.word_embed_proj_dim == config.hidden_size else config.word_embed_proj_dim
    positions = PositionsSpec(config.max_position_embeddings, offset=2)  # rows 0 and 1 were for padding
    return EntrySpec(config.vocab_size, width=width, positions=positions)


def gpt_neox(config: Any) -> TransformerSpec:
    """GPT-NeoX and pythia: both branches read the same input, part of each head is rotated."""
    heads, bias = config.num_attention_heads, config.attention_bias
    rope = rope_of(config, config.hidden_size // heads)
    attention = multi_head(config.hidden_size, heads, bias=bias, rope=rope, layout="per_head")
    mlp = plain_mlp(config.intermediate_size, config.hidden_act)
    return decoder_of(
        config,
        LayerSpec(attention, mlp, "parallel" if config.use_parallel_residual else "pre"),
        NormSpec("layer", config.layer_norm_eps),
        names=GPT_NEOX_NAMES,
        base_prefix="gpt_neox.",
        ignored_names=(*CAUSAL_MASKS, "*.rotary_emb.inv_freq"),
    )


def multi_head(width: int, heads: int, *, bias: bool = True, **fields: Any) -> AttentionSpec:
    """Return an attention that shares out the model's width among its heads, each with keys of its own.

    It knows no positions; `bias` is that of all its products, and `fields` replace its fields.
    """
    head_dim = width // heads
    spec = AttentionSpec(heads, heads, head_dim, head_dim**-0.5, qkv_bias=bias, out_bias=bias)
    return replace(spec, **fields)


def plain_mlp(width: int, activation: str, *, bias: bool = True) -> MlpSpec:
    """Return a feed-forward without a gate; `bias` is that of both its products."""
    return MlpSpec(width, activation, gated=False, up_bias=bias, down_bias=bias)


def gpt2_decoder(
    config: Any,
    layer: LayerSpec | Callable[[int], LayerSpec],
    names: Mapping[str, str],
    norm: NormSpec | None = None,
    **fields: Any,
) -> TransformerSpec:
    """Return a decoder whose checkpoints are written like gpt2's; `fields` replace its fields."""
    norm = norm or NormSpec("layer", config.layer_norm_epsilon)
    return decoder_of(config, layer, norm, names=names, base_prefix="transformer.", **fields)


def gpt2_attention(config: Any, **fields: Any) -> AttentionSpec:
    """Return an attention as gpt2 has it, whose scores may be left as they come; `fields` replace its fields."""
    attention = multi_head(config.n_embd, config.n_head, **fields)
    return attention if config.scale_attn_weights else replace(attention, scale=1.0)


def gpt2_mlp(config: Any) -> MlpSpec:
    """Return a feed-forward as gpt2 has it, four times as wide as the model unless the config says otherwise."""
    return plain_mlp(config.n_inner or 4 * config.n_embd, config.activation_function)
