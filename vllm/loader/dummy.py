"""Random weights for a model that is run without its checkpoint (load_format="dummy")."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import torch

from vllm.weights import Window

_STD = 0.02  # so small that activations stay finite in half precision however deep the model is


@torch.no_grad()
def fill_dummy(windows: Iterable[Window], *, seed: int = 0, device: str = "cpu") -> None:
    """Fill every window with small normal values, made on the device; integers become 0.

    A window's values depend on its name, the seed and the device alone, not on the order of the windows.
    """
    for window in windows:
        values = torch.zeros(window.place.shape, dtype=window.place.dtype, device=device)
        if values.is_floating_point():
            generator = torch.Generator(device).manual_seed(zlib.crc32(f"{seed} {window.name}".encode()))
            values.normal_(0.0, _STD, generator=generator)
        window.place.put(values)
