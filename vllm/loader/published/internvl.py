"""The configuration of InternVL and its kin as they were published, in the words of transformers' InternVL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vllm.errors import ModelError
from vllm.loader.published.tokens import token_id

_VISION = {
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "hidden_act": "hidden_act",
    "norm_type": "norm_type",
    "layer_norm_eps": "layer_norm_eps",
    "image_size": "image_size",
    "patch_size": "patch_size",
    "qkv_bias": "attention_bias",
    "qk_normalization": "use_qk_norm",
}
"""Field of the published vision_config → what transformers calls it"""


def internvl_chat(content: dict[str, Any], folder: Path, word: str = "<IMG_CONTEXT>") -> dict[str, Any]:
    """Return what the config.json of an InternVLChatModel says, whose embeddings stand in the places of a `word`.

    Raises ModelError for what its mathematics is not known of.
    """
    if content.get("ps_version", "v2") != "v2":
        raise ModelError(f"{folder}: ps_version={content['ps_version']!r}: pixels are shuffled as in version 2 only")
    vision, text = content.get("vision_config") or {}, content.get("llm_config") or {}
    names = text.get("architectures") or []
    if not names:
        raise ModelError(f"{folder}: llm_config names no architecture; fetch config.json again")
    text_type = "llama" if text.get("model_type") == "internlm2" else text.get("model_type")  # it has the same fields
    return {
        "architectures": content.get("architectures"),
        "model_type": "internvl",
        "dtype": content.get("torch_dtype") or content.get("dtype"),
        "downsample_ratio": content.get("downsample_ratio", 0.5),
        "vision_feature_layer": content.get("select_layer", -1),
        "image_token_id": token_id(folder, word),
        "tie_word_embeddings": bool(text.get("tie_word_embeddings", False)),
        "vision_config": {ours: vision[theirs] for theirs, ours in _VISION.items() if theirs in vision},
        "text_config": {**text, "model_type": text_type, "architectures": names},
    }


def nvlm_d(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return what the config.json of an NVLM_D_Model says.  Raises ModelError as for InternVL."""
    return internvl_chat(content, folder, "<|vision_pad|>")
