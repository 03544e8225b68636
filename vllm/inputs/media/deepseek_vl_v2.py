"""How DeepSeek-VL2 sees a picture: as a whole on grey, and in the squares of the size that suits it best, on grey too.

a picture 3 : 2   ──▶   ▢   and   ▢ ▢ ▢     each row of embeddings with another one at its end
                                  ▢ ▢ ▢
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vllm.inputs.media.tiles import BICUBIC, HALF, normalized, split
from vllm.loader.config import read_config
from vllm.messages import Modality

_GREY = (127, 127, 127)


class DeepseekVLV2:
    """What prepares pictures for a DeepseekVLV2ForCausalLM."""

    placeholders: Mapping[Modality, str] = {"image": "<image>"}

    def __init__(self, folder: Path) -> None:
        config = read_config(folder)
        self.sizes = [(int(width), int(height)) for width, height in config.candidate_resolutions]
        self.size, vision = config.vision_config.image_size, config.vision_config
        self.begins = _first_token(folder)
        self.side = math.ceil(vision.image_size // vision.patch_size / config.projector["downsample_ratio"])

    def among(self, count: int) -> Mapping[str, Any]:
        """Return how an item is prepared of so many: in squares, where it has one other beside it at most."""
        return {"cropping": count <= 2}

    def prepare(
        self, modality: Modality, data: Any, cropping: bool = True, **options: Any
    ) -> tuple[str, Mapping[str, Any]]:
        """Return the places of a picture, and its squares, the whole first.  Raises ValueError for an option that nobody knows."""
        from PIL import ImageOps

        if options:
            raise ValueError(f"mm_processor_kwargs has {min(options)!r}; it takes cropping")
        size = self._fitting(*data.size) if cropping else (self.size, self.size)
        whole, large = (ImageOps.pad(data, each, BICUBIC, _GREY) for each in ((self.size, self.size), size))
        squares = [normalized(square, HALF) for square in (whole, *split(large, self.size))]
        columns, rows = size[0] // self.size, size[1] // self.size
        count = self.side * (self.side + 1) + 1 + rows * self.side * (columns * self.side + 1)
        return "<image>" * count, {"pixel_values": np.stack(squares), "grid": np.array([rows, columns])}

    def _fitting(self, width: int, height: int) -> tuple[int, int]:
        """Return the size that keeps most of a picture's pixels; of equal ones that which has fewest others."""

        def kept(size: tuple[int, int]) -> tuple[int, int]:
            scale = min(size[0] / width, size[1] / height)
            pixels = min(int(width * scale) * int(height * scale), width * height)
            return pixels, pixels - size[0] * size[1]

        return max(self.sizes, key=kept)


def _first_token(folder: Path) -> str:
    """Return what a vocabulary calls the token that all texts begin with."""
    said = json.loads((folder / "tokenizer_config.json").read_bytes()).get("bos_token")
    return str((said.get("content") if isinstance(said, dict) else said) or "")
