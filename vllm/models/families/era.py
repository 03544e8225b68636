"""Models published with code of their own, most of them llama under other names.

Their config.json is taken as it stands, since transformers has no class for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from vllm.errors import ModelError
from vllm.layers.position_bias import Alibi
from vllm.layers.rotary import Doubling
from vllm.models.families.kin import neighbours
from vllm.models.families.llama import NAMES, attention_of, decoder_of, mlp_of
from vllm.models.families.moe import QWEN_NAMES
from vllm.models.spec import AttentionSpec, EntrySpec, HeadSpec, LayerSpec, MlpSpec, MoeSpec, NormSpec, TransformerSpec

INTERNLM2_NAMES: Mapping[str, str] = {
    "embed": "model.tok_embeddings",
    "norm": "model.norm",
    "head": "output",
    "norm1": "model.layers.{i}.attention_norm",
    "norm2": "model.layers.{i}.ffn_norm",
    "qkv": "model.layers.{i}.attention.wqkv",
    "o": "model.layers.{i}.attention.wo",
    "gate": "model.layers.{i}.feed_forward.w1",
    "up": "model.layers.{i}.feed_forward.w3",
    "down": "model.layers.{i}.feed_forward.w2",
}

BAICHUAN_NAMES: Mapping[str, str] = {**NAMES, "qkv": "model.layers.{i}.self_attn.W_pack"}

EXAONE_NAMES: Mapping[str, str] = {
    "embed": "transformer.wte",
    "norm": "transformer.ln_f",
    "head": "lm_head",
    "norm1": "transformer.h.{i}.ln_1",
    "norm2": "transformer.h.{i}.ln_2",
    "q": "transformer.h.{i}.attn.attention.q_proj",
    "k": "transformer.h.{i}.attn.attention.k_proj",
    "v": "transformer.h.{i}.attn.attention.v_proj",
    "o": "transformer.h.{i}.attn.attention.out_proj",
    "gate": "transformer.h.{i}.mlp.c_fc_0",
    "up": "transformer.h.{i}.mlp.c_fc_1",
    "down": "transformer.h.{i}.mlp.c_proj",
}

EXAONE_FIELDS: Mapping[str, str] = {
    "num_hidden_layers": "num_layers",
    "hidden_act": "activation_function",
    "rms_norm_eps": "layer_norm_epsilon",
}
"""What llama calls a field → what it is called here; so the other tables of fields"""

QWEN1_NAMES: Mapping[str, str] = {
    "embed": "transformer.wte",
    "norm": "transformer.ln_f",
    "head": "lm_head",
    "norm1": "transformer.h.{i}.ln_1",
    "norm2": "transformer.h.{i}.ln_2",
    "qkv": "transformer.h.{i}.attn.c_attn",
    "o": "transformer.h.{i}.attn.c_proj",
    "gate": "transformer.h.{i}.mlp.w2",
    "up": "transformer.h.{i}.mlp.w1",
    "down": "transformer.h.{i}.mlp.c_proj",
}

QWEN1_FIELDS: Mapping[str, str] = {
    "rms_norm_eps": "layer_norm_epsilon",
    "max_position_embeddings": "seq_length",
    "head_dim": "kv_channels",
}

CHATGLM_NAMES: Mapping[str, str] = {
    "embed": "transformer.embedding.word_embeddings",
    "norm": "transformer.encoder.final_layernorm",
    "head": "transformer.output_layer",
    "norm1": "transformer.encoder.layers.{i}.input_layernorm",
    "norm2": "transformer.encoder.layers.{i}.post_attention_layernorm",
    "qkv": "transformer.encoder.layers.{i}.self_attention.query_key_value",
    "o": "transformer.encoder.layers.{i}.self_attention.dense",
    "gate_up": "transformer.encoder.layers.{i}.mlp.dense_h_to_4h",
    "down": "transformer.encoder.layers.{i}.mlp.dense_4h_to_h",
}

CHATGLM_FIELDS: Mapping[str, str] = {
    "vocab_size": "padded_vocab_size",
    "num_hidden_layers": "num_layers",
    "intermediate_size": "ffn_hidden_size",
    "rms_norm_eps": "layernorm_epsilon",
    "max_position_embeddings": "seq_length",
    "head_dim": "kv_channels",
}

TELECHAT2_NAMES: Mapping[str, str] = {
    "embed": "transformer.word_embeddings",
    "norm": "transformer.ln_f",
    "head": "lm_head",
    "norm1": "transformer.h.{i}.input_layernorm",
    "norm2": "transformer.h.{i}.post_attention_layernorm",
    "q": "transformer.h.{i}.self_attention.query",
    "kv": "transformer.h.{i}.self_attention.key_value",
    "o": "transformer.h.{i}.self_attention.dense",
    "gate": "transformer.h.{i}.mlp.gate_proj",
    "up": "transformer.h.{i}.mlp.up_proj",
    "down": "transformer.h.{i}.mlp.down_proj",
}

TELECHAT2_FIELDS: Mapping[str, str] = {
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "rms_norm_eps": "layer_norm_epsilon",
    "intermediate_size": "ffn_hidden_size",
}

DEEPSEEK_NAMES: Mapping[str, str] = {
    **QWEN_NAMES,
    "shared_gate": "model.layers.{i}.mlp.shared_experts.gate_proj",
    "shared_up": "model.layers.{i}.mlp.shared_experts.up_proj",
    "shared_down": "model.layers.{i}.mlp.shared_experts.down_proj",
}


def plain(config: Any) -> TransformerSpec:
    """Llama as it is: aquila, xverse; with biases on all of attention: internlm."""
    config = known(config)
    return decoder_of(config, _layer(config, bias=bool(getattr(config, "bias", False))))


def orion(config: Any) -> TransformerSpec:
    """Llama with layer norms."""
    config = known(config)
    return decoder_of(config, _layer(config), NormSpec("layer", config.rms_norm_eps))


def internlm2(config: Any) -> TransformerSpec:
    """Llama under other names, with q, k and v in one tensor, group by group."""
    config = known(config)
    layer = _layer(config, layout="per_group", bias=bool(getattr(config, "bias", False)))
    return decoder_of(config, layer, names=INTERNLM2_NAMES)


def baichuan(config: Any) -> TransformerSpec:
    """Llama with q, k and v in one tensor; the large ones have distances in the scores instead of rotated heads, the second
    ones a head of unit rows."""
    config = known(config)
    layer = _layer(config, layout="concat")
    if config.hidden_size > 4096:
        layer = replace(layer, mixer=replace(layer.attention, rope=None, position_bias=Alibi()))
    head = HeadSpec(unit="rows" if config.vocab_size == 125696 else "")
    return decoder_of(config, layer, names=BAICHUAN_NAMES, head=head)


def exaone(config: Any) -> TransformerSpec:
    """Llama under other names."""
    config = known(config, **EXAONE_FIELDS)
    return decoder_of(config, _layer(config), names=EXAONE_NAMES)


def minicpm(config: Any) -> TransformerSpec:
    """Llama with factors for embeddings, branches and logits."""
    config = known(config)
    return decoder_of(
        config,
        _layer(config),
        entry=EntrySpec(config.vocab_size, scale=config.scale_emb),
        branch_scale=config.scale_depth / config.num_hidden_layers**0.5,
        head=HeadSpec(scale=config.dim_model_base / config.hidden_size),
        tied=getattr(config, "tie_word_embeddings", True),
    )


def qwen1(config: Any) -> TransformerSpec:
    """Qwen2 under other names, with q, k and v in one tensor."""
    config = known(config, **QWEN1_FIELDS)
    config.rope_parameters = {"rope_type": "default", "rope_theta": config.rotary_emb_base}
    heads, mlp = config.num_attention_heads, MlpSpec(config.intermediate_size // 2, "silu")
    attention = attention_of(config, kv_heads=heads, qkv_bias=True, layout="concat")
    return decoder_of(config, LayerSpec(attention, mlp), names=QWEN1_NAMES)


def chatglm(config: Any) -> TransformerSpec:
    """Glm under other names: chatglm 2 and 3, glm 4 as it was published first."""
    if config.rmsnorm is False or config.apply_residual_connection_post_layernorm or not config.post_layer_norm:
        raise ModelError("a chatglm with layer norms, residuals behind norms, or no last norm is not supported")
    config = known(config, **CHATGLM_FIELDS)
    theta = 10000.0 * getattr(config, "rope_ratio", 1.0)
    config.rope_parameters = {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": 0.5}
    mlp = mlp_of(config, bias=config.add_bias_linear, activation="silu", layout="gate_up")
    layer, ignored = LayerSpec(_chatglm_attention(config), mlp), ("*.rotary_pos_emb.inv_freq",)
    return decoder_of(config, layer, names=CHATGLM_NAMES, tied=False, base_prefix="", ignored_names=ignored)


def _chatglm_attention(config: Any) -> AttentionSpec:
    bias, shares = config.add_bias_linear, config.multi_query_attention
    kv_heads = config.multi_query_group_num if shares else config.num_attention_heads
    attention = attention_of(config, kv_heads=kv_heads, bias=bias, layout="concat")
    return replace(neighbours(attention), qkv_bias=config.add_qkv_bias or bias)


def telechat2(config: Any) -> TransformerSpec:
    """Llama under other names, with k and v in one tensor, head by head; the first telechat too."""
    config = known(config, **TELECHAT2_FIELDS)
    attention = attention_of(config, layout="q_kv", out_bias=True)
    if original := getattr(config, "base_seqlen", None):
        assert attention.rope is not None
        stretch = Doubling(original, config.training_seqlen)
        attention = replace(attention, rope=replace(attention.rope, stretch=stretch))
    layer = LayerSpec(attention, mlp_of(config, activation="silu", down_bias=True))
    return decoder_of(config, layer, names=TELECHAT2_NAMES)


def decilm(config: Any) -> TransformerSpec:
    """Llama whose layers share keys and values among more or fewer heads."""
    if not (shared := getattr(config, "num_key_value_heads_per_layer", None)):
        raise ModelError("of DeciLM, those with num_key_value_heads_per_layer are supported")
    config = known(config)
    return decoder_of(config, lambda index: _layer(config, kv_heads=shared[index]))


def deepseek(config: Any) -> TransformerSpec:
    """Llama with experts on all but its first layers, and some that every token passes."""
    config = known(config)
    moe, dense = _deepseek_experts(config), _layer(config, qkv_bias=config.attention_bias)

    def layer(index: int) -> LayerSpec:
        sparse = index >= config.first_k_dense_replace and index % config.moe_layer_freq == 0
        return replace(dense, ffn=moe) if sparse else dense

    return decoder_of(config, layer, names=DEEPSEEK_NAMES)


def _deepseek_experts(config: Any) -> MoeSpec:
    if getattr(config, "scoring_func", "softmax") != "softmax":
        raise ModelError(
            f"scoring_func={config.scoring_func!r} is not supported; it is softmax in DeepSeek's first models"
        )
    experts = (config.n_routed_experts, config.num_experts_per_tok, config.moe_intermediate_size)
    shared = (config.n_shared_experts or 0) * config.moe_intermediate_size
    return MoeSpec(*experts, config.hidden_act, config.norm_topk_prob, shared_width=shared)


def known(config: Any, **names: str) -> Any:
    """Return the configuration with the names of llama's: `names` says what a field is called here."""
    values = dict(vars(config))
    values |= {name: values[own] for name, own in names.items() if own in values}
    values.setdefault("num_key_value_heads", values["num_attention_heads"])
    values.setdefault("hidden_act", "silu")
    values.setdefault("max_position_embeddings", 4096)
    for name in ("tie_word_embeddings", "attention_bias", "mlp_bias"):
        values.setdefault(name, False)
    parameters = dict(values.get("rope_scaling") or values.get("rope_parameters") or {})
    parameters["rope_type"] = parameters.get("rope_type") or parameters.get("type") or "default"
    parameters.setdefault("rope_theta", values.get("rope_theta") or 10000.0)
    values["rope_parameters"] = parameters
    return SimpleNamespace(**values)


def refuse_set(config: Any, names: Iterable[str], why: str) -> None:
    """Raise ModelError for the first of some fields that is set."""
    for name in names:
        if value := getattr(config, name, None):
            raise ModelError(f"{name}={value!r}: {why}")


def _layer(config: Any, **fields: Any) -> LayerSpec:
    return LayerSpec(attention_of(config, **fields), mlp_of(config))
