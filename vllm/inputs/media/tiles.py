"""Pictures cut into tiles of one size, as many as fit their shape best.

a picture 3 : 2   ──▶   ▢ ▢ ▢
                        ▢ ▢ ▢
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

BICUBIC, BILINEAR, LANCZOS = 3, 2, 1
"""As PIL numbers them"""
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""Mean and deviation of the colours that models were trained with"""


def grids(least: int, most: int) -> list[tuple[int, int]]:
    """Return all columns and rows of so many tiles, those of few tiles first."""
    found = [(x, y) for x in range(1, most + 1) for y in range(1, most + 1) if least <= x * y <= most]
    return sorted(found, key=lambda grid: grid[0] * grid[1])


def closest(picture: Any, size: int, choice: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return the columns and rows that fit a picture's shape best; of equal ones the most that it fills by half."""
    width, height = picture.size
    best, smallest = (1, 1), float("inf")
    for columns, rows in choice:
        difference = abs(width / height - columns / rows)
        is_filled = width * height > 0.5 * size * size * columns * rows
        if difference < smallest or (difference == smallest and is_filled):
            best, smallest = (columns, rows), difference
    return best


def cut(picture: Any, grid: tuple[int, int], size: int, resample: int = BICUBIC) -> list[Any]:
    """Return a picture's tiles, row by row, once it has been stretched to fill them."""
    columns, rows = grid
    return split(picture.resize((columns * size, rows * size), resample), size)


def split(picture: Any, size: int) -> list[Any]:
    """Return the squares of a picture that is a multiple of their size, row by row."""
    width, height = picture.size
    corners = [(x, y) for y in range(0, height, size) for x in range(0, width, size)]
    return [picture.crop((x, y, x + size, y + size)) for x, y in corners]


def normalized(tile: Any, colours: tuple[tuple[float, ...], tuple[float, ...]]) -> np.ndarray:
    """Return a tile's pixels as models take them, with a mean and a deviation of each colour.  -> [3, H, W] float32"""
    mean, deviation = (np.array(values, np.float32) for values in colours)
    pixels = (np.asarray(tile, dtype=np.float32) / 255.0 - mean) / deviation
    return pixels.transpose(2, 0, 1)
