"""The kin of the GPT line: layer norms and biases, with rotary positions, positions in the scores, or parallel branches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from vllm.errors import ModelError
from vllm.layers.position_bias import Alibi
from vllm.layers.rotary import Rope, Unstretched
from vllm.models.families.gpt import (
    ATTN_MASKS,
    CAUSAL_MASKS,
    GPT2_NAMES,
    OPT_NAMES,
    gpt2_attention,
    gpt2_decoder,
    gpt2_mlp,
    multi_head,
    plain_mlp,
)
from vllm.models.families.llama import NAMES, attention_of, decoder_of
from vllm.models.spec import AttentionSpec, EntrySpec, HeadSpec, LayerSpec, NormSpec, PositionsSpec, TransformerSpec

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

FALCON_NAMES: Mapping[str, str] = {role: name for role, name in BLOOM_NAMES.items() if role != "embed_norm"}

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


GPT_NEO_NAMES: Mapping[str, str] = {
    **{role: name for role, name in GPT2_NAMES.items() if role != "qkv"},
    **{role: f"transformer.h.{{i}}.attn.attention.{role}_proj" for role in "qkv"},
    "o": "transformer.h.{i}.attn.attention.out_proj",
}


def gpt_neo(config: Any) -> TransformerSpec:
    """Gpt2 without biases on q, k and v, whose scores are left as they come; windows on some layers."""
    attention = replace(multi_head(config.hidden_size, config.num_heads, scale=1.0), qkv_bias=False)
    mlp = plain_mlp(config.intermediate_size or 4 * config.hidden_size, config.activation_function)

    def layer(index: int) -> LayerSpec:
        local = config.attention_layers[index] == "local"
        return LayerSpec(replace(attention, window=config.window_size if local else None), mlp)

    entry = EntrySpec(config.vocab_size, positions=PositionsSpec(config.max_position_embeddings))
    return gpt2_decoder(config, layer, GPT_NEO_NAMES, entry=entry, ignored_names=CAUSAL_MASKS)


XGLM_NAMES: Mapping[str, str] = {
    role: name.replace("model.decoder.final_layer_norm", "model.layer_norm").replace("model.decoder", "model")
    for role, name in OPT_NAMES.items()
}


def xglm(config: Any) -> TransformerSpec:
    """Opt whose positions are waves and whose embeddings are scaled."""
    mlp = plain_mlp(config.ffn_dim, config.activation_function)
    layer = LayerSpec(multi_head(config.d_model, config.attention_heads), mlp)
    positions = PositionsSpec(config.max_position_embeddings, offset=2, waves="fairseq")
    scale = config.d_model**0.5 if config.scale_embedding else 1.0
    entry = EntrySpec(config.vocab_size, scale=scale, positions=positions)
    return decoder_of(config, layer, NormSpec("layer", 1e-5), entry=entry, names=XGLM_NAMES)


def phi(config: Any) -> TransformerSpec:
    """Phi 1 and 2: both branches under one norm, part of each head rotated, biases everywhere."""
    if config.qk_layernorm:
        raise ModelError(
            "qk_layernorm=True: a phi with norms on q and k is not supported; use model_impl='transformers'"
        )
    mlp = plain_mlp(config.intermediate_size, config.hidden_act)
    layer = LayerSpec(attention_of(config, bias=True), mlp, "parallel_one")
    norm = NormSpec("layer", config.layer_norm_eps)
    return decoder_of(config, layer, norm, names=PHI_NAMES, head=HeadSpec(bias=True))


def starcoder2(config: Any) -> TransformerSpec:
    """Rotary positions and grouped heads in a gpt."""
    attention = attention_of(config, window=config.sliding_window, bias=config.use_bias)
    mlp = plain_mlp(config.intermediate_size, config.hidden_act, bias=config.use_bias)
    norm = NormSpec("layer", config.norm_epsilon)
    return decoder_of(config, LayerSpec(attention, mlp), norm, names=STARCODER2_NAMES)


def persimmon(config: Any) -> TransformerSpec:
    """Norms on the heads of q and k, part of each head rotated."""
    heads, head_norm = config.num_attention_heads, "head" if config.qk_layernorm else ""
    attention = attention_of(config, kv_heads=heads, bias=True, layout="per_head", head_norm=head_norm)
    mlp = plain_mlp(config.intermediate_size, config.hidden_act)
    norm = NormSpec("layer", config.layer_norm_eps)
    return decoder_of(config, LayerSpec(attention, mlp), norm, names=PERSIMMON_NAMES)


def gpt_bigcode(config: Any) -> TransformerSpec:
    """Gpt2 whose heads share one key and value."""
    sharing = {"kv_heads": 1, "layout": "concat"} if config.multi_query else {"layout": "per_head"}
    layer = LayerSpec(gpt2_attention(config, **sharing), gpt2_mlp(config))
    entry = EntrySpec(config.vocab_size, positions=PositionsSpec(config.n_positions))
    return gpt2_decoder(config, layer, GPT2_NAMES, entry=entry, ignored_names=ATTN_MASKS)


def gptj(config: Any) -> TransformerSpec:
    """Both branches under one norm, part of each head rotated by neighbours."""
    rotated = config.rotary_dim or config.n_embd // config.n_head
    rope = Rope(10000.0, rotated, Unstretched(), interleaved=True)
    attention = multi_head(config.n_embd, config.n_head, bias=False, rope=rope)
    layer = LayerSpec(attention, gpt2_mlp(config), "parallel_one")
    ignored = (*ATTN_MASKS, "*.attn.embed_positions")
    return gpt2_decoder(config, layer, GPTJ_NAMES, head=HeadSpec(bias=True), ignored_names=ignored)


def bloom(config: Any) -> TransformerSpec:
    """Distances in the scores, a norm on the embeddings."""
    if config.apply_residual_connection_post_layernorm:
        raise ModelError(
            "apply_residual_connection_post_layernorm=True is not supported; use model_impl='transformers'"
        )
    attention = multi_head(config.hidden_size, config.n_head, position_bias=Alibi(), layout="per_head")
    layer = LayerSpec(attention, plain_mlp(4 * config.hidden_size, "gelu_pytorch_tanh"))
    return gpt2_decoder(config, layer, BLOOM_NAMES, entry=EntrySpec(config.vocab_size, norm=True))


def mpt(config: Any) -> TransformerSpec:
    """Distances in the scores, no biases."""
    _refuse_other_mpt(config.attn_config, config.n_heads)
    attention = multi_head(config.d_model, config.n_heads, bias=False, position_bias=Alibi(), layout="concat")
    if scale := config.attn_config.softmax_scale:
        attention = replace(attention, scale=scale)
    layer = LayerSpec(attention, plain_mlp(config.expansion_ratio * config.d_model, "gelu", bias=False))
    norm = NormSpec("layer", config.layer_norm_epsilon, bias=False)
    return gpt2_decoder(config, layer, MPT_NAMES, norm)


def _refuse_other_mpt(attention: Any, heads: int) -> None:
    if attention.clip_qkv or not attention.alibi or attention.alibi_bias_max != 8 or heads & (heads - 1):
        raise ModelError(
            "an mpt with clip_qkv, without alibi, with another alibi_bias_max than 8, or whose number of heads is no power "
            "of 2 is not supported; use model_impl='transformers'"
        )


def falcon(config: Any) -> TransformerSpec:
    """Gpt with rotated heads that share keys and values, and both branches under one norm (7b) or under norms of their own
    (40b); or with distances in the scores and one branch behind the other (rw)."""
    block, norms = _falcon_block(config)
    width = getattr(config, "ffn_hidden_size", None) or 4 * config.hidden_size
    mlp = plain_mlp(width, config.activation, bias=config.bias)
    layer = LayerSpec(_falcon_attention(config), mlp, block)
    return gpt2_decoder(config, layer, {**FALCON_NAMES, **norms})


def _falcon_block(config: Any) -> tuple[Literal["pre", "parallel", "parallel_one"], Mapping[str, str]]:
    """Return how the branches of a layer are joined, and the names of its norms where they are others."""
    if config.new_decoder_architecture and getattr(config, "num_ln_in_parallel_attn", None) != 1:
        return "parallel", {"norm1": "transformer.h.{i}.ln_attn", "norm2": "transformer.h.{i}.ln_mlp"}
    return "parallel_one" if config.new_decoder_architecture or config.parallel_attn else "pre", {}


def _falcon_attention(config: Any) -> AttentionSpec:
    attention = attention_of(config, kv_heads=config.num_attention_heads, bias=config.bias, layout="per_head")
    if config.new_decoder_architecture:
        attention = replace(attention, kv_heads=config.num_kv_heads, layout="per_group")
    elif config.multi_query:
        attention = replace(attention, kv_heads=1, layout="concat")
    return replace(attention, rope=None, position_bias=Alibi(scaled=True)) if config.alibi else attention


def biogpt(config: Any) -> TransformerSpec:
    """Opt under other names, with scaled embeddings."""
    attention = multi_head(config.hidden_size, config.num_attention_heads)
    layer = LayerSpec(attention, plain_mlp(config.intermediate_size, config.hidden_act))
    scale = config.hidden_size**0.5 if config.scale_embedding else 1.0
    positions = PositionsSpec(config.max_position_embeddings, offset=2)  # as opt has them
    entry = EntrySpec(config.vocab_size, scale=scale, positions=positions)
    norm = NormSpec("layer", config.layer_norm_eps)
    return decoder_of(config, layer, norm, entry=entry, names=BIOGPT_NAMES, base_prefix="biogpt.")
