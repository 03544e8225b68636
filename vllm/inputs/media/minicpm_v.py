"""How MiniCPM-V sees a picture: as a whole, and in slices of about one size where it is larger, of its own shape all of them.

a large picture   ──▶   ▢   and   ▢ ▢ ▢     each  <unk> × 64, however many patches it has
                                  ▢ ▢ ▢
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vllm.inputs.media.places import NUMBER
from vllm.inputs.media.tiles import BICUBIC, HALF, normalized
from vllm.loader.published.minicpm_v import version_of
from vllm.messages import Modality


class MiniCPMV:
    """What prepares pictures for a MiniCPMV."""

    placeholders: Mapping[Modality, str] = {"image": "(<image>./</image>)"}

    def __init__(self, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_bytes())
        try:
            said = json.loads((folder / "preprocessor_config.json").read_bytes())
        except OSError:
            said = {}
        self.is_first = version_of(config) == "2.5"
        self.num_places = int(said.get("image_feature_size") or config.get("query_num", 96 if self.is_first else 64))
        self.size = int(said.get("scale_resolution", 448))
        self.patch = int(said.get("patch_size", 14))
        self.colours = (said.get("norm_mean", HALF[0]), said.get("norm_std", HALF[1]))
        self.options = {
            "max_slice_nums": int(said.get("max_slice_nums", 9)),
            "use_image_id": bool(said.get("use_image_id", not self.is_first)),
        }

    def prepare(self, modality: Modality, data: Any, **options: Any) -> tuple[str, Mapping[str, Any]]:
        """Return the places of a picture, and the patches of all its parts.  Raises ValueError for an option that nobody knows."""
        if unknown := options.keys() - self.options.keys():
            raise ValueError(f"mm_processor_kwargs has {min(unknown)!r}; it takes {', '.join(self.options)}")
        options = {**self.options, **options}
        grid = self._grid(data, options["max_slice_nums"])
        parts = [normalized(part, self.colours) for part in self._parts(data, grid)]
        sizes = [(part.shape[1] // self.patch, part.shape[2] // self.patch) for part in parts]
        patches = np.concatenate([self._patches(part) for part in parts])
        return self._places(grid, options["use_image_id"]), {"patches": patches, "sizes": np.array(sizes)}

    def _places(self, grid: tuple[int, int] | None, has_number: bool) -> str:
        one = "<unk>" * self.num_places
        whole = f"<image_id>{NUMBER}</image_id>" * has_number + f"<image>{one}</image>"
        if grid is None:
            return whole
        columns, rows = grid
        if self.is_first:
            return whole + "<slice>" + "\n".join([f"<image>{one}</image>" * columns] * rows) + "</slice>"
        return whole + "\n".join([f"<slice>{one}</slice>" * columns] * rows)

    def _grid(self, picture: Any, most: int) -> tuple[int, int] | None:
        """Return the columns and rows of slices whose number fits a picture's size, and whose shape its shape, best."""
        width, height = picture.size
        count = min(math.ceil(width * height / self.size**2), most)
        if count <= 1:
            return None
        choice = [
            (columns, near // columns)
            for near in (count - 1, count, count + 1)
            if 1 < near <= most
            for columns in range(1, near + 1)
            if near % columns == 0
        ]
        return min(choice, key=lambda grid: abs(math.log(width / height) - math.log(grid[0] / grid[1])))

    def _parts(self, picture: Any, grid: tuple[int, int] | None) -> list[Any]:
        """Return a picture as a whole, and its slices row by row."""
        width, height = picture.size
        whole = picture.resize(self._fitting(width, height), BICUBIC)
        if grid is None:
            return [whole]
        columns, rows = grid
        wide, high = self._fitting(_rounded(width, columns) / columns, _rounded(height, rows) / rows)
        large = picture.resize((wide * columns, high * rows), BICUBIC)
        corners = [(x * wide, y * high) for y in range(rows) for x in range(columns)]
        return [whole, *(large.crop((x, y, x + wide, y + high)) for x, y in corners)]

    def _fitting(self, width: float, height: float) -> tuple[int, int]:
        """Return a size of that shape and of the area that is seen at once, in whole patches."""
        ratio = width / height
        high = int(self.size / math.sqrt(ratio))
        return _rounded(int(high * ratio), self.patch), _rounded(high, self.patch)

    def _patches(self, pixels: np.ndarray) -> np.ndarray:
        """[3, H, W] -> [n, 3 · P · P]"""
        rows, columns = pixels.shape[1] // self.patch, pixels.shape[2] // self.patch
        parts = pixels.reshape(3, rows, self.patch, columns, self.patch)
        return parts.transpose(1, 3, 0, 2, 4).reshape(rows * columns, -1)


def _rounded(length: float, unit: int) -> int:
    """Return the multiple of a unit that is nearest, one at least."""
    return max(round(length / unit), 1) * unit
