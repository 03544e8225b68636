"""The kin of the GPT line: layer norms and biases, with rotary positions, positions in the scores, or parallel branches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.errors import ModelError
from vllm.layers.position_bias import Alibi
from vllm.layers.rotary import Rope, Unstretched
from vllm.models.families.gpt import GPT2_NAMES, OPT_NAMES
from vllm.models.families.llama import NAMES, attention_of, decoder_of
from vllm.models.spec import (
    AttentionSpec,
    EntrySpec,
    HeadSpec,
    LayerSpec,
    MlpSpec,
    NormSpec,
    PositionsSpec,
    TransformerSpec,
)

PHI_NAMES: Mapping[str, str] = {
    **NAMES,
    "norm": "model.final_layernorm",
    "o": "model.layers.{i}.self_attn.dense",
    "up": "model.layers.{i}.mlp.fc1",
    "down": "model.layers.{i}.mlp.fc2",
}

STARCODER2_NAMES: Mapping[str, str] = {
    **NAMES,
    "up": "model.layers.{i}.mlp.c_fc",
    "down": "model.layers.{i}.mlp.c_proj",
}

PERSIMMON_NAMES: Mapping[str, str] = {
    **NAMES,
    "norm": "model.final_layernorm",
    "qkv": "model.layers.{i}.self_attn.query_key_value",
    "o": "model.layers.{i}.self_attn.dense",
    "q_norm": "model.layers.{i}.self_attn.q_layernorm",
    "k_norm": "model.layers.{i}.self_attn.k_layernorm",
    "up": "model.layers.{i}.mlp.dense_h_to_4h",
    "down": "model.layers.{i}.mlp.dense_4h_to_h",
}

GPTJ_NAMES: Mapping[str, str] = {
    "embed": "transformer.wte",
    "norm": "transformer.ln_f",
    "head": "lm_head",
    "norm1": "transformer.h.{i}.ln_1",
    "q": "transformer.h.{i}.attn.q_proj",
    "k": "transformer.h.{i}.attn.k_proj",
    "v": "transformer.h.{i}.attn.v_proj",
    "o": "transformer.h.{i}.attn.out_proj",
    "up": "transformer.h.{i}.mlp.fc_in",
    "down": "transformer.h.{i}.mlp.fc_out",
}

BLOOM_NAMES: Mapping[str, str] = {
    "embed": "transformer.word_embeddings",
    "embed_norm": "transformer.word_embeddings_layernorm",
    "norm": "transformer.ln_f",
    "head": "lm_head",
    "norm1": "transformer.h.{i}.input_layernorm",
    "norm2": "transformer.h.{i}.post_attention_layernorm",
    "qkv": "transformer.h.{i}.self_attention.query_key_value",
    "o": "transformer.h.{i}.self_attention.dense",
    "up": "transformer.h.{i}.mlp.dense_h_to_4h",
    "down": "transformer.h.{i}.mlp.dense_4h_to_h",
}

MPT_NAMES: Mapping[str, str] = {
    "embed": "transformer.wte",
    "norm": "transformer.norm_f",
    "head": "lm_head",
    "norm1": "transformer.blocks.{i}.norm_1",
    "norm2": "transformer.blocks.{i}.norm_2",
    "qkv": "transformer.blocks.{i}.attn.Wqkv",
    "o": "transformer.blocks.{i}.attn.out_proj",
    "up": "transformer.blocks.{i}.ffn.up_proj",
    "down": "transformer.blocks.{i}.ffn.down_proj",
}

BIOGPT_NAMES: Mapping[str, str] = {
    role: name.replace("model.decoder.final_layer_norm", "biogpt.layer_norm").replace("model.decoder", "biogpt")
    for role, name in OPT_NAMES.items()
    if role != "head"
} | {"head": "output_projection"}


def phi(config: Any) -> TransformerSpec:
    """Phi 1 and 2: both branches under one norm, part of each head rotated, biases everywhere."""
    if config.qk_layernorm:
        raise ModelError(
            "qk_layernorm=True: a phi with norms on q and k is not supported; use model_impl='transformers'"
        )
    layer = LayerSpec(
        attention_of(config, qkv_bias=True, out_bias=True),
        MlpSpec(config.intermediate_size, config.hidden_act, gated=False, up_bias=True, down_bias=True),
        "parallel_one",
    )
    norm = NormSpec("layer", config.layer_norm_eps)
    return decoder_of(config, lambda index: layer, norm=norm, names=PHI_NAMES, head=HeadSpec(bias=True))


def starcoder2(config: Any) -> TransformerSpec:
    """Rotary positions and grouped heads in a gpt."""
    bias = config.use_bias
    layer = LayerSpec(
        attention_of(config, window=config.sliding_window, qkv_bias=bias, out_bias=bias),
        MlpSpec(config.intermediate_size, config.hidden_act, gated=False, up_bias=bias, down_bias=bias),
    )
    norm = NormSpec("layer", config.norm_epsilon)
    return decoder_of(config, lambda index: layer, norm=norm, names=STARCODER2_NAMES)


def persimmon(config: Any) -> TransformerSpec:
    """Norms on the heads of q and k, part of each head rotated."""
    layer = LayerSpec(
        attention_of(
            config, kv_heads=config.num_attention_heads, qkv_bias=True, out_bias=True, layout="per_head",
            head_norm="head" if config.qk_layernorm else "",
        ),
        MlpSpec(config.intermediate_size, config.hidden_act, gated=False, up_bias=True, down_bias=True),
    )  # fmt: skip
    norm = NormSpec("layer", config.layer_norm_eps)
    return decoder_of(config, lambda index: layer, norm=norm, names=PERSIMMON_NAMES)


def gpt_bigcode(config: Any) -> TransformerSpec:
    """Gpt2 whose heads share one key and value."""
    head_dim = config.n_embd // config.n_head
    heads = (config.n_head, 1 if config.multi_query else config.n_head, head_dim)
    scale = head_dim**-0.5 if config.scale_attn_weights else 1.0
    layout = "concat" if config.multi_query else "per_head"
    layer = LayerSpec(
        AttentionSpec(*heads, scale, qkv_bias=True, out_bias=True, layout=layout),  # type: ignore[arg-type]
        MlpSpec(
            config.n_inner or 4 * config.n_embd, config.activation_function, gated=False, up_bias=True, down_bias=True
        ),
    )
    return TransformerSpec(
        EntrySpec(config.vocab_size, positions=PositionsSpec(config.n_positions)),
        config.n_embd,
        (layer,) * config.n_layer,
        NormSpec("layer", config.layer_norm_epsilon),
        GPT2_NAMES,
        config.tie_word_embeddings,
        base_prefix="transformer.",
        ignored_names=("*.attn.bias", "*.attn.masked_bias"),
    )


def gptj(config: Any) -> TransformerSpec:
    """Both branches under one norm, part of each head rotated by neighbours."""
    head_dim = config.n_embd // config.n_head
    rope = Rope(10000.0, config.rotary_dim or head_dim, Unstretched(), interleaved=True)
    layer = LayerSpec(
        AttentionSpec(config.n_head, config.n_head, head_dim, head_dim**-0.5, rope),
        MlpSpec(
            config.n_inner or 4 * config.n_embd, config.activation_function, gated=False, up_bias=True, down_bias=True
        ),
        "parallel_one",
    )
    return TransformerSpec(
        EntrySpec(config.vocab_size),
        config.n_embd,
        (layer,) * config.n_layer,
        NormSpec("layer", config.layer_norm_epsilon),
        GPTJ_NAMES,
        config.tie_word_embeddings,
        head=HeadSpec(bias=True),
        base_prefix="transformer.",
        ignored_names=("*.attn.bias", "*.attn.masked_bias", "*.attn.embed_positions"),
    )


def bloom(config: Any) -> TransformerSpec:
    """Distances in the scores, a norm on the embeddings."""
    if config.apply_residual_connection_post_layernorm:
        raise ModelError(
            "apply_residual_connection_post_layernorm=True is not supported; use model_impl='transformers'"
        )
    head_dim = config.hidden_size // config.n_head
    layer = LayerSpec(
        AttentionSpec(
            config.n_head, config.n_head, head_dim, head_dim**-0.5, position_bias=Alibi(), qkv_bias=True, out_bias=True,
            layout="per_head",
        ),
        MlpSpec(4 * config.hidden_size, "gelu_pytorch_tanh", gated=False, up_bias=True, down_bias=True),
    )  # fmt: skip
    return TransformerSpec(
        EntrySpec(config.vocab_size, norm=True),
        config.hidden_size,
        (layer,) * config.n_layer,
        NormSpec("layer", config.layer_norm_epsilon),
        BLOOM_NAMES,
        config.tie_word_embeddings,
        base_prefix="transformer.",
    )


def mpt(config: Any) -> TransformerSpec:
    """Distances in the scores, no biases."""
    attention = config.attn_config
    heads, head_dim = config.n_heads, config.d_model // config.n_heads
    if attention.clip_qkv or not attention.alibi or attention.alibi_bias_max != 8 or heads & (heads - 1):
        raise ModelError(
            "an mpt with clip_qkv, without alibi, with another alibi_bias_max than 8, or whose number of heads is no power "
            "of 2 is not supported; use model_impl='transformers'"
        )
    scale = attention.softmax_scale or head_dim**-0.5
    layer = LayerSpec(
        AttentionSpec(heads, heads, head_dim, scale, position_bias=Alibi(), layout="concat"),
        MlpSpec(config.expansion_ratio * config.d_model, "gelu", gated=False),
    )
    return TransformerSpec(
        EntrySpec(config.vocab_size),
        config.d_model,
        (layer,) * config.n_layers,
        NormSpec("layer", config.layer_norm_epsilon, bias=False),
        MPT_NAMES,
        config.tie_word_embeddings,
        base_prefix="transformer.",
    )


def falcon(config: Any) -> TransformerSpec:
    """Both branches under one norm, heads that share one key and value, no biases: falcon 7b and its like."""
    if not config.multi_query or config.new_decoder_architecture or not config.parallel_attn or config.alibi:
        raise ModelError(
            "of falcon, those with multi_query and parallel_attn, without new_decoder_architecture and alibi are "
            "supported; use model_impl='transformers' for others"
        )
    attention = attention_of(config, kv_heads=1, qkv_bias=config.bias, out_bias=config.bias, layout="concat")
    width = getattr(config, "ffn_hidden_size", None) or 4 * config.hidden_size
    mlp = MlpSpec(width, config.activation, gated=False, up_bias=config.bias, down_bias=config.bias)
    layer = LayerSpec(attention, mlp, "parallel_one")
    return decoder_of(
        config,
        lambda index: layer,
        norm=NormSpec("layer", config.layer_norm_epsilon),
        names={role: name for role, name in BLOOM_NAMES.items() if role != "embed_norm"},
        base_prefix="transformer.",
    )


def biogpt(config: Any) -> TransformerSpec:
    """Opt under other names, with scaled embeddings."""
    head_dim = config.hidden_size // config.num_attention_heads
    heads = (config.num_attention_heads, config.num_attention_heads, head_dim)
    layer = LayerSpec(
        AttentionSpec(*heads, head_dim**-0.5, qkv_bias=True, out_bias=True),
        MlpSpec(config.intermediate_size, config.hidden_act, gated=False, up_bias=True, down_bias=True),
    )
    return TransformerSpec(
        EntrySpec(
            config.vocab_size,
            scale=config.hidden_size**0.5 if config.scale_embedding else 1.0,
            positions=PositionsSpec(config.max_position_embeddings, offset=2),
        ),
        config.hidden_size,
        (layer,) * config.num_hidden_layers,
        NormSpec("layer", config.layer_norm_eps),
        BIOGPT_NAMES,
        config.tie_word_embeddings,
        base_prefix="biogpt.",
    )
