"""The configuration of DeepSeek-VL2, whose text part is of one of three kinds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm.errors import ModelError
from vllm.loader.published.tokens import token_id

_TEXT_DEFAULTS: Mapping[str, Any] = {
    "first_k_dense_replace": 0,
    "moe_layer_freq": 1,
    "n_group": 1,
    "n_shared_experts": 0,
    "norm_topk_prob": False,
    "num_attention_heads": 32,
    "rms_norm_eps": 1e-6,
    "routed_scaling_factor": 1.0,
    "tie_word_embeddings": False,
    "topk_group": 1,
    "topk_method": "greedy",
}
"""What is meant where language_config says nothing, which differs from what transformers means"""
_KNOWN: Mapping[str, Mapping[str, Any]] = {
    "": {"tile_tag": "2D"},
    "projector_config": {"projector_type": "downsample_mlp_gelu", "token_pooling": False},
    "vision_config": {"class_token": False, "ignore_head": True},
}
"""Part → its fields, with the values that are supported"""


def deepseek_vl_v2(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return what the config.json of a DeepseekVLV2ForCausalLM says, and that of another architecture as it is.

    Raises ModelError for what its mathematics is not known of.
    """
    if "DeepseekVLV2ForCausalLM" not in (content.get("architectures") or ()):
        return content
    for part, fields in _KNOWN.items():
        for name, known in fields.items():
            value = (content.get(part) or {} if part else content).get(name, known)
            if value != known:
                raise ModelError(f"{folder}: {name}={value!r} is not supported; a model with {known!r} is")
    projector, text = content.get("projector_config") or {}, _text(content.get("language_config") or {})
    return {
        "architectures": content["architectures"],
        "model_type": "llava",
        "dtype": content.get("torch_dtype") or content.get("dtype") or text.get("torch_dtype"),
        "text_config": text,
        "vision_config": _vision(content.get("vision_config") or {}),
        "image_token_id": token_id(folder, "<image>"),
        "projector": {
            name: projector.get(name, default)
            for name, default in (("depth", 2), ("mlp_ratio", 1), ("downsample_ratio", 2))
        },
        "whole_first": content.get("global_view_pos", "head") == "head",
        "candidate_resolutions": content.get("candidate_resolutions", [[384, 384]]),
        "tie_word_embeddings": bool(text["tie_word_embeddings"]),
    }


def _text(said: Mapping[str, Any]) -> dict[str, Any]:
    text = {**_TEXT_DEFAULTS, **{name: value for name, value in said.items() if value is not None}}
    text |= {name: None for name in ("q_lora_rank", "rope_scaling") if said.get(name, 0) is None}
    if not said.get("use_mla", True):
        kind, model_type = "Deepseek", "llama"  # the fields that transformers has no class for are kept beside
    elif text["topk_method"] == "noaux_tc":
        kind, model_type = "DeepseekV3", "deepseek_v3"
    else:
        kind, model_type = "DeepseekV2", "deepseek_v2"
    text.pop("auto_map", None)
    return {**text, "architectures": [f"{kind}ForCausalLM"], "model_type": model_type}


def _vision(said: Mapping[str, Any]) -> dict[str, Any]:
    width = said.get("width", 1024)
    return {
        "model_type": "siglip_vision_model",
        "vision_use_head": False,
        "image_size": said.get("image_size", 384),
        "patch_size": said.get("patch_size", 16),
        "hidden_size": width,
        "num_hidden_layers": said.get("layers", 24),
        "num_attention_heads": said.get("heads", 16),
        "intermediate_size": int(width * said.get("mlp_ratio", 4)),
    }
