"""The configuration of Molmo, whose text part is olmo 2 or qwen 2 under names of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vllm.errors import ModelError
from vllm.loader.published.tokens import token_id

CLIP: dict[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_act": "quick_gelu",
    "hidden_size": 1024,
    "image_size": 336,
    "intermediate_size": 4096,
    "layer_norm_eps": 1e-5,
    "num_attention_heads": 16,
    "num_hidden_layers": 22,
    "patch_size": 14,
}
"""What every Molmo sees with, as far as the last layer that it looks at; configs do not say it"""
_SAME = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "rope_theta",
    "torch_dtype",
)
_KNOWN = {"layer_norm_type": "rms", "clip_qkv": None, "rope_scaling": None, "normalize_input_embeds": False}


def molmo(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return what the config.json of a MolmoForCausalLM says.  Raises ModelError for what its mathematics is not known of."""
    for name, known in _KNOWN.items():
        if content.get(name, known) != known:
            raise ModelError(f"{folder}: {name}={content[name]!r} is not supported; a model with {known!r} is")
    text = {name: content[name] for name in _SAME if name in content}
    return {
        "architectures": content.get("architectures"),
        "model_type": "llava",
        "dtype": content.get("torch_dtype") or content.get("dtype"),
        "text_config": {
            **text,
            "model_type": "llama",
            "vocab_size": content.get("embedding_size") or content["vocab_size"],
            "intermediate_size": content["intermediate_size"] // 2,
            "num_key_value_heads": content.get("num_key_value_heads") or content["num_attention_heads"],
            "rms_norm_eps": content.get("layer_norm_eps", 1e-5),
            "attention_bias": bool(content.get("qkv_bias", False)),
            "has_head_norms": bool(content.get("attention_layer_norm", False)),
            "norm_after": bool(content.get("norm_after", False)),
        },
        "vision_config": CLIP,
        "image_token_id": token_id(folder, "<im_patch>"),
        "image_marks": [token_id(folder, word) for word in ("<im_start>", "<im_end>", "<im_col>")],
        "num_new_tokens": content.get("additional_vocab_size", 128),
        "tie_word_embeddings": bool(content.get("weight_tying", False)),
    }
