"""The configuration of Qwen-VL, which is the first qwen's with a field `visual`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_NOT_OF_TEXT = ("architectures", "auto_map", "model_type", "torch_dtype", "visual")


def qwen_vl(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return what the config.json of a qwen that sees says, and that of one that doesn't as it is."""
    eye = content.get("visual")
    if not eye:
        return content
    text = {name: value for name, value in content.items() if name not in _NOT_OF_TEXT}
    return {
        "architectures": ["QwenVLForConditionalGeneration"],
        "model_type": "llava",
        "dtype": content.get("torch_dtype") or content.get("dtype"),
        "text_config": {
            **text,
            "model_type": "llama",  # whose configuration keeps fields of other names beside its own
            "architectures": ["QWenLMHeadModel"],
            "max_position_embeddings": content["seq_length"],
        },
        "eye": eye,
        "image_token_id": eye["image_start_id"] + 2,
        "tie_word_embeddings": False,
    }
