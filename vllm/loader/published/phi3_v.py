"""The configuration of Phi-3-V, and of Phi-3.5-V."""

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
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "patch_size": 14,
}
"""openai's clip-vit-large-patch14-336, which configs only name"""
_KNOWN = {"use_hd_transform": True, "with_learnable_separator": True, "hd_transform_order": "sub_glb"}


def phi3_v(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return what the config.json of a Phi3VForCausalLM says.  Raises ModelError for what its mathematics is not known of."""
    content = dict(content)
    entry, seen = content.pop("embd_layer", None) or {}, content.pop("img_processor", None) or {}
    for name, known in _KNOWN.items():
        if entry.get(name, known) != known:
            raise ModelError(f"{folder}: embd_layer has {name}={entry[name]!r}; a model with {known!r} is supported")
    if seen.get("type_feature", "patch") != "patch":
        raise ModelError(f"{folder}: img_processor has type_feature={seen['type_feature']!r}; patch is supported")
    layer = seen.get("layer_idx", -2)
    count = CLIP["num_hidden_layers"] + layer + 1 if layer < 0 else layer  # the states behind that many layers
    left_out = ("auto_map", "architectures", "torch_dtype", "model_type")
    text = {"model_type": "phi3"} | {name: content[name] for name in content if name not in left_out}
    if (text.get("rope_scaling") or {}).get("type") == "su":  # an older name
        text["rope_scaling"] = {**text["rope_scaling"], "type": "longrope"}
    return {
        "architectures": content.get("architectures"),
        "model_type": "llava",
        "dtype": content.get("torch_dtype") or content.get("dtype"),
        "text_config": text,
        "vision_config": {**CLIP, "num_hidden_layers": count},
        "image_token_id": token_id(folder, "<|image|>"),
        "tie_word_embeddings": bool(content.get("tie_word_embeddings", False)),
    }
