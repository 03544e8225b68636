"""The configuration of Ultravox, whose text part, and in older ones the encoder, lie in repositories of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vllm.errors import ModelError
from vllm.loader.find import find_model
from vllm.loader.published.tokens import first_of, ids_of

SPARE = ("<|audio|>", "<|reserved_special_token_0|>", "<unused0>", "<|fim_pad|>", "<SPECIAL_20>", "<unk>")
"""Tokens that no text has, of which a vocabulary's first keeps the places of sounds; Ultravox has none of its own for that"""
_REFUSED = {"num_projector_layers": 0, "audio_latency_block_size": None}
"""Field → its value where the mathematics is known here"""


def ultravox(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return what the config.json of an UltravoxModel says.  Raises ModelError for what its mathematics is not known of."""
    for name, known in _REFUSED.items():
        if content.get(name, known) != known:
            raise ModelError(f"{folder}: {name}={content[name]!r} is not supported; a model with {known} is")
    audio, audio_folder = _part(content, "audio", folder)
    text, text_folder = _part(content, "text", folder)
    text = text.get("text_config") or text  # one that sees, too
    return {
        "architectures": content.get("architectures"),
        "model_type": "llava",
        "dtype": content.get("torch_dtype") or content.get("dtype"),
        "text_config": {"model_type": "llama", **text},
        "audio_config": {"model_type": "whisper", **audio},
        "audio_token_id": ids_of(folder)[first_of(folder, SPARE)],
        "tie_word_embeddings": bool(text.get("tie_word_embeddings", text.get("model_type", "").startswith("gemma"))),
        "projector": {
            "width": content.get("hidden_size", 4096),
            "stack_factor": content.get("stack_factor", 8),
            "act": content.get("projector_act", "swiglu"),
            "norm_in_middle": bool(content.get("projector_ln_mid", False)),
        },
        "weights_beside": [str(found) for found in (audio_folder, text_folder) if found],
    }


def _part(content: dict[str, Any], name: str, folder: Path) -> tuple[dict[str, Any], Path | None]:
    """Return the configuration of a part, and the folder that it has to itself, if so."""
    where = content.get(f"{name}_model_id")
    if where is None:
        return content.get(f"{name}_config") or {}, None
    if (content.get(f"{name}_model_lora_config") or {}).get("r"):
        raise ModelError(f"{folder}: {name}_model_lora_config adapts {where}; merge the adapter into its weights")
    found = find_model(where)
    try:
        return json.loads((found / "config.json").read_bytes()), found
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder}: its {name} part {where} has no config.json that can be read: {error}") from error
