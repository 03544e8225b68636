"""How Phi-3-V sees a picture: as large as so many squares let it be, with white above and below, and as a whole before that.

a picture 3 : 2   ──▶   ▢   and   ▢ ▢ ▢     each row of patches with an embedding at its end
                                  ▢ ▢ ▢
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vllm.inputs.media.tiles import BILINEAR, CLIP, normalized
from vllm.loader.config import read_config
from vllm.messages import Modality


class Phi3V:
    """What prepares pictures for a Phi3VForCausalLM."""

    placeholders: Mapping[Modality, str] = {"image": "<|image|>"}
    spelled: Mapping[Modality, str] = {"image": r"<\|image_(\d+)\|>"}
    apart = True

    def __init__(self, folder: Path) -> None:
        vision = read_config(folder).vision_config
        self.size = vision.image_size
        self.side = vision.image_size // vision.patch_size // 2  # of a square, in embeddings
        try:
            said = json.loads((folder / "preprocessor_config.json").read_bytes())
        except OSError:
            said = {}
        self.num_crops = int(said.get("num_crops", 16))

    def prepare(
        self, modality: Modality, data: Any, num_crops: int = 0, **options: Any
    ) -> tuple[str, Mapping[str, Any]]:
        """Return the places of a picture, and its squares, at most `num_crops`, the whole first.

        Raises ValueError for an option that nobody knows.
        """
        if options:
            raise ValueError(f"mm_processor_kwargs has {min(options)!r}; it takes num_crops")
        large = normalized(self._enlarged(data, num_crops or self.num_crops), CLIP)
        rows, columns = large.shape[1] // self.size, large.shape[2] // self.size
        squares = large.reshape(3, rows, self.size, columns, self.size).transpose(1, 3, 0, 2, 4)
        squares = np.concatenate([_shrunk(large, self.size), squares.reshape(-1, 3, self.size, self.size)])
        count = (rows * columns + 1) * self.side**2 + (rows + 1) * self.side + 1
        return "<|image|>" * count, {"pixel_values": squares, "grid": np.array([rows, columns])}

    def _enlarged(self, picture: Any, most: int) -> Any:
        """Return a picture that is so many squares wide (high, if it is higher than wide), with white besides."""
        from PIL import Image

        is_high = picture.width < picture.height
        if is_high:
            picture = picture.transpose(Image.Transpose.TRANSPOSE)
        ratio, columns = picture.width / picture.height, 1
        while (columns + 1) * math.ceil((columns + 1) / ratio) <= most:
            columns += 1
        width, height = columns * self.size, int(columns * self.size / ratio)
        whole = Image.new("RGB", (width, math.ceil(height / self.size) * self.size), "white")
        whole.paste(picture.resize((width, height), BILINEAR), (0, (whole.height - height) // 2))
        return whole.transpose(Image.Transpose.TRANSPOSE) if is_high else whole


def _shrunk(pixels: np.ndarray, size: int) -> np.ndarray:
    """[3, H, W] -> [1, 3, size, size]"""
    import torch
    from torch.nn import functional

    found: np.ndarray = functional.interpolate(
        torch.from_numpy(pixels)[None], size=(size, size), mode="bicubic"
    ).numpy()
    return found
