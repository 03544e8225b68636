"""Configurations that code beside the checkpoint defines, in the words of classes that transformers has.

Some models were published with code of their own before transformers knew them, or have been renamed for one detail.  What
such a config.json says can be read without that code where the mathematics is known here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_MODEL_TYPES: Mapping[str, str] = {
    "RefinedWeb": "falcon",
    "RefinedWebModel": "falcon",
    "kimi_k2": "deepseek_v3",
    "llama_bidirec": "llama",  # nvidia's embedding models
    "new": "gte",  # Alibaba-NLP/new-impl
    "stablelm_epoch": "stablelm",
}
"""A model type → the one whose configuration has the same fields."""

_GPT2: Mapping[str, str] = {
    "layer_norm_epsilon": "layer_norm_eps",
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "n_layer": "num_hidden_layers",
    "n_positions": "max_position_embeddings",
}
_FALCON: Mapping[str, str] = {
    "n_head": "num_attention_heads",
    "n_head_kv": "num_kv_heads",
    "n_layer": "num_hidden_layers",
}
_FIELDS: Mapping[str, Mapping[str, str]] = {
    "RefinedWeb": _FALCON,
    "RefinedWebModel": _FALCON,
    "falcon": _FALCON,
    "jais": _GPT2,
    "nomic_bert": _GPT2,
    "stablelm_epoch": {"norm_eps": "layer_norm_eps", "rope_pct": "partial_rotary_factor"},
}
"""Model type → its older names of fields."""

_FACTS: Mapping[str, dict[str, Any]] = {"RefinedWeb": {"new_decoder_architecture": True}}
"""Model type → what it says by itself."""

_GATED_ACTIVATIONS = {"swiglu": "silu", "geglu": "gelu", "glu": "sigmoid"}


def translated(content: dict[str, Any]) -> dict[str, Any]:
    """Return config.json's content in the words of transformers; itself where it is in them."""
    model_type = content.get("model_type")
    if not isinstance(model_type, str):
        return content
    content = {**content, "model_type": _MODEL_TYPES.get(model_type, model_type)}
    older = _FIELDS.get(model_type, {})
    content = {older.get(name, name): value for name, value in content.items()} | _FACTS.get(model_type, {})
    if older and content.get("activation_function") in _GATED_ACTIVATIONS:
        content["hidden_act"] = _GATED_ACTIVATIONS[content.pop("activation_function")]
    return content
