"""The GPT line: layer norms, biases, a feed-forward without a gate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.errors import ModelError
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

CAUSAL_MASKS = ("*.attn.bias", "*.attn.masked_bias", "*.attention.bias", "*.attention.masked_bias")
"""Old checkpoints store the causal mask of each layer."""


def gpt2(config: Any) -> TransformerSpec:
    """Gpt2; the scale of scores may fall from layer to layer."""
    if config.add_cross_attention:
        raise ModelError("add_cross_attention=True: a gpt2 that attends to an encoder is not supported")
    head_dim = config.n_embd // config.n_head
    mlp = MlpSpec(
        config.n_inner or 4 * config.n_embd, config.activation_function, gated=False, up_bias=True, down_bias=True
    )

    def layer(index: int) -> LayerSpec:
        scale = head_dim**-0.5 if config.scale_attn_weights else 1.0
        scale /= index + 1 if config.scale_attn_by_inverse_layer_idx else 1
        heads = (config.n_head, config.n_head, head_dim)
        return LayerSpec(AttentionSpec(*heads, scale, qkv_bias=True, out_bias=True, layout="concat"), mlp)

    return TransformerSpec(
        EntrySpec(config.vocab_size, positions=PositionsSpec(config.n_positions)),
        config.n_embd,
        tuple(layer(index) for index in range(config.n_layer)),
        NormSpec("layer", config.layer_norm_epsilon),
        GPT2_NAMES,
        config.tie_word_embeddings,
        transposed=True,
        base_prefix="transformer.",
        ignored_names=CAUSAL_MASKS,
    )


def opt(config: Any) -> TransformerSpec:
    """Opt; the 350m one has its norms after the branches and narrower embeddings."""
    head_dim = config.hidden_size // config.num_attention_heads
    heads, bias = (config.num_attention_heads, config.num_attention_heads, head_dim), config.enable_bias
    layer = LayerSpec(
        AttentionSpec(*heads, head_dim**-0.5, qkv_bias=bias, out_bias=bias),
        MlpSpec(config.ffn_dim, config.activation_function, gated=False, up_bias=bias, down_bias=bias),
        "pre" if config.do_layer_norm_before else "post",
    )
    return TransformerSpec(
        EntrySpec(
            config.vocab_size,
            width=None if config.word_embed_proj_dim == config.hidden_size else config.word_embed_proj_dim,
            positions=PositionsSpec(config.max_position_embeddings, offset=2),  # rows 0 and 1 were for padding
        ),
        config.hidden_size,
        (layer,) * config.num_hidden_layers,
        NormSpec("layer", 1e-5, affine=config.layer_norm_elementwise_affine),
        OPT_NAMES,
        config.tie_word_embeddings,
        final_norm=config.do_layer_norm_before and not config._remove_final_layer_norm,
    )


def gpt_neox(config: Any) -> TransformerSpec:
    """GPT-NeoX and pythia: both branches read the same input, part of each head is rotated."""
    head_dim = config.hidden_size // config.num_attention_heads
    heads, bias = (config.num_attention_heads, config.num_attention_heads, head_dim), config.attention_bias
    rope = rope_of(config, head_dim)
    layer = LayerSpec(
        AttentionSpec(*heads, head_dim**-0.5, rope, qkv_bias=bias, out_bias=bias, layout="per_head"),
        MlpSpec(config.intermediate_size, config.hidden_act, gated=False, up_bias=True, down_bias=True),
        "parallel" if config.use_parallel_residual else "pre",
    )
    return TransformerSpec(
        EntrySpec(config.vocab_size),
        config.hidden_size,
        (layer,) * config.num_hidden_layers,
        NormSpec("layer", config.layer_norm_eps),
        GPT_NEOX_NAMES,
        config.tie_word_embeddings,
        base_prefix="gpt_neox.",
        ignored_names=(*CAUSAL_MASKS, "*.rotary_emb.inv_freq"),
    )
