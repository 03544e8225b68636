"""Every model that takes media, tiny, by the name of its example."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from tests.media import tiny, tiny_embedders, tiny_others, tiny_sounds
from tests.media.tiny import Maker

Make = Callable[[Maker], tuple[Any, Any]]

FAMILIES: dict[str, Make] = {make.__name__: make for make in (*tiny.SEEING, *tiny_others.OTHERS, *tiny_sounds.SOUNDS)}
"""Those whose text is computed here"""
BY_THEMSELVES: dict[str, Make] = {"voxtral": tiny_sounds.voxtral}
"""Those that transformers' processors can't be asked about"""
EMBEDDERS: dict[str, Make] = {make.__name__: make for make in tiny_embedders.EMBEDDERS}
MAKERS: dict[str, Make] = {**FAMILIES, **EMBEDDERS, **BY_THEMSELVES}

SOUNDS = tuple(make.__name__ for make in tiny_sounds.SOUNDS)
"""Those that hear"""
NEEDS = {
    **dict.fromkeys(
        (
            "pixtral",
            "mistral3",
            "llava_next_video",
            "kimi_k25",
            "fuyu",
            "phi4_multimodal",
            "llama4",
            "cohere2_vision",
            "molmo2",
            "molmo2_o",
        ),
        "torchvision",
    ),
    "granite_speech": "torchaudio",
}
"""Those whose processors transformers has beside another package only"""


def save_media_checkpoint(folder: Path, tokenizer_folder: Path, name: str) -> Path:
    """Write the checkpoint folder of one of MAKERS."""
    maker = Maker(tokenizer_folder)
    maker.save(folder, *MAKERS[name](maker))
    if name == "kimi_k25":  # transformers writes the text's layers under the vision tower's name, and reads both
        file = folder / "model.safetensors"
        renamed = {key.replace("model.blocks", "model.layers"): value for key, value in load_file(file).items()}
        save_file(renamed, file, {"format": "pt"})
    return folder
