"""The configuration of MiniCPM-V, from 2.5 on, and of MiniCPM-o 2.6."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm.errors import ModelError
from vllm.loader.published.tokens import first_of, token_id

TEXTS: Mapping[str, str] = {"2.5": "llama", "2.6": "qwen2", "4.0": "llama", "4.5": "qwen3"}
"""Version → model type of its text part"""
SPARE = ("<|audio|>", "<|spk|>")
"""Tokens that no text has, of which a vocabulary's first keeps the places of sounds, apart from those of pictures"""
_NOT_OF_TEXT = (
    "architectures",
    "auto_map",
    "model_type",
    "torch_dtype",
    "vision_config",
    "slice_config",
    "audio_config",
)


def minicpm_v(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return what the config.json of a MiniCPMV says.  Raises ModelError for a version that is not known."""
    version = version_of(content)
    if version not in TEXTS:
        raise ModelError(f"{folder}: version={version} of MiniCPM-V is not supported; use one of {', '.join(TEXTS)}")
    vision = dict(content.get("vision_config") or {})
    layers = vision.get("num_hidden_layers", 27) - bool(content.get("drop_vision_last_layer", version == "2.5"))
    return {
        "architectures": content.get("architectures"),
        "model_type": "llava",
        "dtype": content.get("torch_dtype") or content.get("dtype"),
        "text_config": {"model_type": TEXTS[version]}
        | {name: value for name, value in content.items() if name not in _NOT_OF_TEXT},
        "vision_config": {**vision, "model_type": "siglip_vision_model", "num_hidden_layers": layers},
        "image_token_id": token_id(folder, "<unk>"),
        "query_num": content.get("query_num", 96 if version == "2.5" else 64),
        "version": version,
        "tie_word_embeddings": bool(content.get("tie_word_embeddings", False)),
    }


def minicpm_o(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return what the config.json of a MiniCPMO says.  Raises ModelError for a version that is not known."""
    if version_of(content) != "2.6":
        raise ModelError(f"{folder}: version={content.get('version')} of MiniCPM-o is not supported; 2.6 is")
    return minicpm_v(content, folder) | {
        "audio_config": {"model_type": "whisper", **(content.get("audio_config") or {})},
        "audio_token_id": token_id(folder, first_of(folder, SPARE)),
        "audio_chunk": int(50 * content.get("audio_chunk_length", 1.0)),  # states that see each other
        "audio_pool_step": content.get("audio_pool_step", 2),
    }


def version_of(content: Mapping[str, Any]) -> str:
    """Return the version that a config.json says, or that it shows where it doesn't."""
    old = "2.0" if content.get("hidden_size") == 2304 and content.get("query_num") == 64 else "2.5"
    return str(float(content.get("version") or old))
