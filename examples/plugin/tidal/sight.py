"""Tidal with an eye: pictures of 16 x 16 pixels, of which each quarter becomes one embedding."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

SIDE, PATCH = 16, 8


class Processor:
    """What is done to a picture before the model's process gets it.  It is made of the model's folder."""

    placeholders = {"image": "<picture>"}

    def __init__(self, folder: Path) -> None:
        pass

    def prepare(self, modality: str, data: Any, brightness: float = 1.0) -> tuple[str, dict[str, Any]]:
        """Return the text that takes the placeholder's place, with a token for each embedding, and what the tower takes."""
        pixels = np.asarray(data.resize((SIDE, SIDE)), dtype=np.float32) / 255.0 * brightness
        return "[" + "<patch>" * (SIDE // PATCH) ** 2 + "]", {"pixels": torch.from_numpy(pixels)}


class Eye(nn.Module):
    """The tower.  It is made of the configuration; its weights are called tower.… in the checkpoint."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.patches = nn.Linear(3 * PATCH**2, config.hidden_size)

    def get_image_features(self, pixels: Tensor) -> Tensor:
        """[16, 16, 3] -> [4, D]"""
        rows = pixels.unflatten(1, (-1, PATCH)).unflatten(0, (-1, PATCH))  # [2, 8, 2, 8, 3]
        found: Tensor = self.patches(rows.transpose(1, 2).reshape(-1, 3 * PATCH**2))
        return found


def save(folder: str) -> None:
    """Write a tiny Tidal that sees, with random weights."""
    from safetensors.torch import load_file, save_file
    from tokenizers import AddedToken
    from transformers import AutoTokenizer

    from tidal import checkpoint
    from tidal.reference import TidalConfig

    checkpoint.save(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([AddedToken(word, special=True) for word in ("<picture>", "<patch>")])
    tokenizer.save_pretrained(folder)
    patch = tokenizer.convert_tokens_to_ids("<patch>")
    config = TidalConfig(architectures=["TidalWithSight"], eos_token_id=256, image_token_id=patch)
    config.save_pretrained(folder)
    file = f"{folder}/model.safetensors"
    torch.manual_seed(1)
    eye = {f"tower.{name}": tensor for name, tensor in Eye(config).state_dict().items()}
    save_file(load_file(file) | eye, file, metadata={"format": "pt"})


if __name__ == "__main__":
    save(sys.argv[1])
