"""How InternVL sees a picture: in tiles of one size, as many as fit its shape best, and as a whole.

a picture 3 : 2   ──▶   ▢ ▢ ▢      and   ▢     each  <IMG_CONTEXT> × 256
                        ▢ ▢ ▢
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vllm.messages import Modality

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class InternVL:
    """What prepares pictures for an InternVLChatModel."""

    placeholders: Mapping[Modality, str] = {"image": "<image>"}

    def __init__(self, folder: Path) -> None:
        said = json.loads((folder / "config.json").read_bytes())
        vision = said["vision_config"]
        self.size = int(said.get("force_image_size") or vision["image_size"])
        self.num_places = int((self.size // vision["patch_size"]) ** 2 * said.get("downsample_ratio", 0.5) ** 2)
        self.options = {
            "min_dynamic_patch": int(said.get("min_dynamic_patch", 1)),
            "max_dynamic_patch": int(said.get("max_dynamic_patch", 12)),
            "dynamic_image_size": bool(said.get("dynamic_image_size", True)),
            "use_thumbnail": bool(said.get("use_thumbnail", True)),
        }

    def prepare(self, modality: Modality, data: Any, **options: Any) -> tuple[str, Mapping[str, Any]]:
        """Return the places of a picture, and its tiles.  Raises ValueError for an option that nobody knows."""
        if unknown := options.keys() - self.options.keys():
            raise ValueError(f"mm_processor_kwargs has {min(unknown)!r}; it takes {', '.join(self.options)}")
        tiles = np.stack([_normalized(tile) for tile in self._tiles(data, **{**self.options, **options})])
        return "<img>" + "<IMG_CONTEXT>" * self.num_places * len(tiles) + "</img>", {"pixel_values": tiles}

    def _tiles(
        self,
        picture: Any,
        min_dynamic_patch: int,
        max_dynamic_patch: int,
        dynamic_image_size: bool,
        use_thumbnail: bool,
    ) -> list[Any]:
        whole = picture.resize((self.size, self.size), _BICUBIC)
        if not dynamic_image_size:
            return [whole]
        width, height = picture.size
        columns, rows = _grid(width, height, self.size, min_dynamic_patch, max_dynamic_patch)
        large = picture.resize((columns * self.size, rows * self.size), _BICUBIC)
        corners = [(x * self.size, y * self.size) for y in range(rows) for x in range(columns)]
        tiles = [large.crop((x, y, x + self.size, y + self.size)) for x, y in corners]
        return [*tiles, whole] if use_thumbnail and len(tiles) > 1 else tiles


_BICUBIC = 3
"""As PIL numbers it"""


def _grid(width: int, height: int, size: int, least: int, most: int) -> tuple[int, int]:
    """Return how many columns and rows of tiles fit a picture's shape best; of equal ones the most that it fills by half."""
    grids = [(x, y) for x in range(1, most + 1) for y in range(1, most + 1) if least <= x * y <= most]
    best, smallest = (1, 1), float("inf")
    for columns, rows in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        difference = abs(width / height - columns / rows)
        is_filled = width * height > 0.5 * size * size * columns * rows
        if difference < smallest or (difference == smallest and is_filled):
            best, smallest = (columns, rows), difference
    return best


def _normalized(tile: Any) -> np.ndarray:
    """-> [3, size, size] float32"""
    pixels = (np.asarray(tile, dtype=np.float32) / 255.0 - np.array(_MEAN, np.float32)) / np.array(_STD, np.float32)
    return pixels.transpose(2, 0, 1)
