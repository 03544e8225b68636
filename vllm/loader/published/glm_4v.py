"""The configuration of GLM-4V, which is chatglm's with a vision_config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vllm.loader.published.tokens import token_id

_NOT_OF_TEXT = ("architectures", "auto_map", "model_type", "torch_dtype", "vision_config")


def glm_4v(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return what the config.json of a chatglm that sees says, and that of one that doesn't as it is."""
    if not content.get("vision_config"):
        return content
    text = {name: value for name, value in content.items() if name not in _NOT_OF_TEXT}
    return {
        "architectures": ["GLM4VForCausalLM"],
        "model_type": "llava",
        "dtype": content.get("torch_dtype") or content.get("dtype"),
        "text_config": {
            **text,
            "model_type": "llama",  # whose configuration keeps fields of other names beside its own
            "vocab_size": content["padded_vocab_size"],
            "num_hidden_layers": content["num_layers"],
            "max_position_embeddings": content["seq_length"],
            "head_dim": content["kv_channels"],
        },
        "eye": content["vision_config"],
        "image_token_id": token_id(folder, "<|endoftext|>"),
        "image_marks": [token_id(folder, word) for word in ("<|begin_of_image|>", "<|end_of_image|>")],
        "tie_word_embeddings": False,
    }
