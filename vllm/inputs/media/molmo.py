"""How Molmo sees a picture: as a whole, and in crops that overlap, of which each shows the next one's edge.

a picture 3 : 2   ──▶   ▢   and   ▢▢▢     a grid of embeddings each, <im_col> at the ends of rows
                                  ▢▢▢
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vllm.inputs.media.tiles import CLIP
from vllm.messages import Modality


class Molmo:
    """What prepares pictures for a MolmoForCausalLM."""

    placeholders: Mapping[Modality, str] = {"image": "<|image|>"}
    begins = "<|endoftext|>"
    leads = True

    def __init__(self, folder: Path) -> None:
        try:
            said = json.loads((folder / "preprocessor_config.json").read_bytes())
        except OSError:
            said = {}
        self.size = int(np.max(said.get("base_image_input_size", 336)))
        self.patch = int(said.get("image_patch_size", 14))
        self.margins = tuple(said.get("overlap_margins", (4, 4)))  # of a crop, left and right, in patches
        self.max_crops = int(said.get("max_crops", 12))
        self.side = self.size // self.patch

    def prepare(
        self, modality: Modality, data: Any, max_crops: int = 0, **options: Any
    ) -> tuple[str, Mapping[str, Any]]:
        """Return the places of a picture, and its crops, at most `max_crops`, the whole first.

        Beside these go what share of each patch is of the picture, and which embeddings of crops count, in the order of their
        places.  Raises ValueError for an option that nobody knows.
        """
        if options:
            raise ValueError(f"mm_processor_kwargs has {min(options)!r}; it takes max_crops")
        window = (self.side - sum(self.margins)) * self.patch
        margin = sum(self.margins) * self.patch
        rows, columns = _tiling(data.height - margin, data.width - margin, window, max_crops or self.max_crops)
        whole, _ = _fitted(data, self.size, self.size)
        large, share = _fitted(data, rows * window + margin, columns * window + margin)
        corners = [(y * window, x * window) for y in range(rows) for x in range(columns)]
        crops = [whole, *(large[:, y : y + self.size, x : x + self.size] for y, x in corners)]
        shares = [self._by_patch(share[y : y + self.size, x : x + self.size]) for y, x in corners]
        shares.append(np.full_like(shares[0], -1.0))  # as trained: each crop has the next one's shares
        order = self._order(rows, columns)
        features = {"pixel_values": np.stack(crops), "shares": np.stack(shares), "order": order.flatten()}
        return _grid(self.side // 2, self.side // 2) + _grid(*order.shape), features

    def _by_patch(self, share: np.ndarray) -> np.ndarray:
        """[S, S] -> [n]"""
        return share.reshape(self.side, self.patch, self.side, self.patch).mean(axis=(1, 3), dtype=np.float32).flatten()

    def _order(self, rows: int, columns: int) -> np.ndarray:
        """Return the numbers of the embeddings that make up the large picture: of each crop those that are its own."""
        side = self.side // 2
        numbers = (1 + np.arange(rows * columns)).reshape(rows, columns, 1, 1) * side**2
        numbers = numbers + np.arange(side**2).reshape(side, side)
        parts = [
            [numbers[y, x][self._own(y, rows), self._own(x, columns)] for x in range(columns)] for y in range(rows)
        ]
        return np.block(parts)

    def _own(self, index: int, count: int) -> slice:
        """Return which embeddings of a crop are its own along one side, if it is the index-th of so many."""
        left, right = (margin // 2 for margin in self.margins)
        return slice(left if index else 0, self.side // 2 - (right if index + 1 < count else 0))


def _grid(rows: int, columns: int) -> str:
    return "<im_start>" + ("<im_patch>" * columns + "<im_col>") * rows + "<im_end>"


def _tiling(height: int, width: int, window: int, most: int) -> tuple[int, int]:
    """Return the rows and columns of crops that enlarge a picture least, or else make it least small."""
    grids = [(y, x) for y in range(1, most + 1) for x in range(1, most + 1) if y * x <= most]
    grids.sort(key=lambda grid: (grid[0] * grid[1], grid[0]))
    with np.errstate(divide="ignore"):  # a picture may be no larger than the margins
        scales = (np.array(grids) * window).astype(np.float32) / np.array([height, width], np.float32)
    scale = scales.min(axis=1)
    best = scale.argmax() if (scale < 1).all() else np.where(scale < 1, np.inf, scale).argmin()
    return grids[int(best)]


def _fitted(picture: Any, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a picture in the middle of black, normalised, and where it is.  -> [3, height, width], [height, width] float32"""
    import torch
    from torch.nn import functional

    scale = min(np.float32(width) / np.float32(picture.width), np.float32(height) / np.float32(picture.height))
    high, wide = int(np.float32(picture.height) * scale), int(np.float32(picture.width) * scale)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255.0
    small = functional.interpolate(pixels, size=(high, wide), mode="bilinear", antialias=True)[0].clip(0.0, 1.0)
    top, left = (height - high) // 2, (width - wide) // 2
    large, share = np.zeros((3, height, width), np.float32), np.zeros((height, width), np.float32)
    large[:, top : top + high, left : left + wide], share[top : top + high, left : left + wide] = small.numpy(), 1.0
    mean, deviation = (np.array(values, np.float32)[:, None, None] for values in CLIP)
    return (large - mean) / deviation, share
