"""Encoders with rotary positions: modernbert, nomic-bert, gte, jina embeddings v3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.errors import ModelError
from vllm.layers.rotary import Rope, Unstretched
from vllm.models.families.gpt import multi_head, plain_mlp
from vllm.models.families.llama import mlp_of
from vllm.models.rope import rope_of
from vllm.models.spec import AttentionSpec, EntrySpec, LayerSpec, MlpSpec, NormSpec, TransformerSpec

IGNORED = ("*.rotary_emb.inv_freq", "*pooler.dense.*", "cls.*", "lm_head.*", "classifier.*")

MODERN_NAMES: Mapping[str, str] = {
    "embed": "model.embeddings.tok_embeddings",
    "embed_norm": "model.embeddings.norm",
    "norm": "model.final_norm",
    "norm1": "model.layers.{i}.attn_norm",
    "qkv": "model.layers.{i}.attn.Wqkv",
    "o": "model.layers.{i}.attn.Wo",
    "norm2": "model.layers.{i}.mlp_norm",
    "gate_up": "model.layers.{i}.mlp.Wi",
    "down": "model.layers.{i}.mlp.Wo",
}

_EMBEDDINGS: Mapping[str, str] = {
    "embed": "embeddings.word_embeddings",
    "token_types": "embeddings.token_type_embeddings",
}

NOMIC_NAMES: Mapping[str, str] = {
    **_EMBEDDINGS,
    "embed_norm": "emb_ln",
    "qkv": "encoder.layers.{i}.attn.Wqkv",
    "o": "encoder.layers.{i}.attn.out_proj",
    "norm1": "encoder.layers.{i}.norm1",
    "gate": "encoder.layers.{i}.mlp.fc12",
    "up": "encoder.layers.{i}.mlp.fc11",
    "down": "encoder.layers.{i}.mlp.fc2",
    "norm2": "encoder.layers.{i}.norm2",
}

NOMIC_FIELDS: Mapping[str, Any] = {
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "parallel_block": False,
    "prenorm": False,
    "qkv_proj_bias": False,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "rotary_scaling_factor": None,
    "use_rms_norm": False,
    "num_experts": 0,
}
"""What alone is supported of nomic's"""

GTE_NAMES: Mapping[str, str] = {
    **_EMBEDDINGS,
    "embed_norm": "embeddings.LayerNorm",
    "qkv": "encoder.layer.{i}.attention.qkv_proj",
    "o": "encoder.layer.{i}.attention.o_proj",
    "norm1": "encoder.layer.{i}.attn_ln",
    "gate_up": "encoder.layer.{i}.mlp.up_gate_proj",
    "down": "encoder.layer.{i}.mlp.down_proj",
    "norm2": "encoder.layer.{i}.mlp_ln",
}

GTE_FIELDS: Mapping[str, Any] = {
    "layer_norm_type": "layer_norm",
    "logn_attention_scale": False,
    "pack_qkv": True,
    "position_embedding_type": "rope",
}
"""What alone is supported of gte's"""

JINA_NAMES: Mapping[str, str] = {
    **_EMBEDDINGS,
    "embed_norm": "emb_ln",
    "qkv": "encoder.layers.{i}.mixer.Wqkv",
    "o": "encoder.layers.{i}.mixer.out_proj",
    "norm1": "encoder.layers.{i}.norm1",
    "up": "encoder.layers.{i}.mlp.fc1",
    "down": "encoder.layers.{i}.mlp.fc2",
    "norm2": "encoder.layers.{i}.norm2",
}


def modernbert(config: Any) -> TransformerSpec:
    """Norms before each branch, windows and another rope on most layers."""
    return TransformerSpec(
        EntrySpec(config.vocab_size, norm=True),
        config.hidden_size,
        tuple(_modern_layer(config, index) for index in range(config.num_hidden_layers)),
        NormSpec("layer", config.norm_eps, bias=config.norm_bias),
        MODERN_NAMES,
        ignored_names=(*IGNORED, "head.*", "decoder.*"),
    )


def _modern_layer(config: Any, index: int) -> LayerSpec:
    kind, bias = config.layer_types[index], config.mlp_bias
    # as many to each side as half of the local attention, and itself
    window = config.local_attention // 2 + 1 if kind == "sliding_attention" else None
    width, heads = config.hidden_size, config.num_attention_heads
    fields = {"rope": rope_of(config, width // heads, kind), "window": window, "causal": False, "layout": "concat"}
    attention = multi_head(width, heads, bias=config.attention_bias, **fields)
    mlp = MlpSpec(config.intermediate_size, config.hidden_activation, up_bias=bias, down_bias=bias, layout="gate_up")
    return LayerSpec(attention, mlp, "pre" if index else "pre_ffn")  # the embeddings are normalised already


def nomic_bert(config: Any) -> TransformerSpec:
    """Gates and no biases."""
    _require(config, NOMIC_FIELDS)
    layer = LayerSpec(_attention(config, bias=False), mlp_of(config), "post")
    return _post_norm(config, NOMIC_NAMES, "nomic_bert.", layer)


def gte(config: Any) -> TransformerSpec:
    """Gte and snowflake's arctic-embed 2, as transformers names them."""
    return _gte(config, "gte.")


def gte_new(config: Any) -> TransformerSpec:
    """Gte as its authors name it."""
    return _gte(config, "new.")


def jina_v3(config: Any) -> TransformerSpec:
    """Jina embeddings v3 without its adapters, and what is built like it: xlm-roberta with rotary positions."""
    mlp = plain_mlp(config.intermediate_size, config.hidden_act)
    return _post_norm(config, JINA_NAMES, "roberta.", LayerSpec(_attention(config, bias=True), mlp, "post"))


def _gte(config: Any, prefix: str) -> TransformerSpec:
    _require(config, GTE_FIELDS)
    mlp = MlpSpec(config.intermediate_size, config.hidden_act, down_bias=True, layout="up_gate")
    return _post_norm(config, GTE_NAMES, prefix, LayerSpec(_attention(config, bias=True), mlp, "post"))


def _post_norm(config: Any, names: Mapping[str, str], prefix: str, layer: LayerSpec) -> TransformerSpec:
    return TransformerSpec(
        EntrySpec(config.vocab_size, token_types=config.type_vocab_size, norm=True),
        config.hidden_size,
        (layer,) * config.num_hidden_layers,
        NormSpec("layer", config.layer_norm_eps),
        {role: prefix + name for role, name in names.items()},
        final_norm=False,
        base_prefix=prefix,
        ignored_names=IGNORED,
    )


def _attention(config: Any, bias: bool) -> AttentionSpec:
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    rope = _rope(config, head_dim)
    return multi_head(head_dim * heads, heads, bias=bias, rope=rope, causal=False, layout="concat")


def _rope(config: Any, head_dim: int) -> Rope:
    theta = getattr(config, "rotary_emb_base", None)
    if theta is None and not hasattr(config, "rope_parameters"):
        theta = 10000.0  # jina's reranker v2 says nothing of it
    return Rope(theta, head_dim, Unstretched()) if theta else rope_of(config, head_dim)


def _require(config: Any, expected: Mapping[str, Any]) -> None:
    """Refuse a config that asks for what was never built in this family."""
    for name, value in expected.items():
        found = getattr(config, name, value)
        if found != value and (found or value):
            raise ModelError(f"{name}={found!r} is not supported for {config.model_type}; only {value!r} is")
