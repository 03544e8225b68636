"""How InternVL and its kin see a picture: in tiles of one size, as many as fit its shape best, and as a whole.

a picture 3 : 2   ──▶   ▢ ▢ ▢      and   ▢     each  <IMG_CONTEXT> × 256
                        ▢ ▢ ▢
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vllm.inputs.media.tiles import BICUBIC, IMAGENET, closest, cut, grids, normalized
from vllm.messages import Modality


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
        tiles = self.tiles(data, **{**self.options, **options})
        return self.places(len(tiles)), {"pixel_values": np.stack([normalized(tile, IMAGENET) for tile in tiles])}

    def places(self, count: int) -> str:
        """Return what stands in a text for so many tiles."""
        return "<img>" + "<IMG_CONTEXT>" * self.num_places * count + "</img>"

    def tiles(
        self,
        picture: Any,
        *,
        min_dynamic_patch: int,
        max_dynamic_patch: int,
        dynamic_image_size: bool,
        use_thumbnail: bool,
    ) -> list[Any]:
        """Return a picture's tiles, and itself as one where there are several."""
        whole = picture.resize((self.size, self.size), BICUBIC)
        if not dynamic_image_size:
            return [whole]
        grid = closest(picture, self.size, grids(min_dynamic_patch, max_dynamic_patch))
        tiles = cut(picture, grid, self.size)
        return [*tiles, whole] if use_thumbnail and len(tiles) > 1 else tiles


class H2OVL(InternVL):
    """What prepares pictures for an H2OVLChatModel: one by itself is cut at two scales."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        said = json.loads((folder / "config.json").read_bytes())
        self.options["use_msac"] = False
        self.has_scales = bool(said.get("use_msac", False))

    def among(self, count: int) -> Mapping[str, Any]:
        """Return how an item is prepared of so many."""
        return {"use_msac": self.has_scales and count == 1}

    def tiles(self, picture: Any, *, use_msac: bool = False, **options: Any) -> list[Any]:
        """Return a picture's tiles, of a second scale before those of the first, and itself as one."""
        if not use_msac:
            return super().tiles(picture, **options)
        most, whole = options["max_dynamic_patch"], picture.resize((self.size, self.size), BICUBIC)
        first = closest(picture, self.size, grids(1, most))
        others = [grid for grid in grids(3, most) if first[0] % grid[0] and first[1] % grid[1]]
        scales = (closest(picture, self.size, others), first)
        return [*(tile for grid in scales if grid != (1, 1) for tile in cut(picture, grid, self.size)), whole]


class NVLM(InternVL):
    """What prepares pictures for an NVLM_D_Model: each tile has its number before it."""

    def places(self, count: int) -> str:
        """Return what stands in a text for so many tiles, of which the last is the whole."""
        tags = [*(f"<tile_{number}>" for number in range(1, count)), "<tile_global_thumbnail>"]
        return "<Image>" + "".join(tag + "<|vision_pad|>" * self.num_places for tag in tags) + "</Image>"
