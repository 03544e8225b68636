"""Random weights for a model that is run without its checkpoint (load_format="dummy")."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import torch

from vllm.weights import Window


@torch.no_grad()
def fill_dummy(windows: Iterable[Window], *, seed: int = 0, std: float = 0.02) -> None:
    """Fill every window with normal values of standard deviation `std`; integers become 0.

    A window's values depend on its name and the seed alone, not on the order of the windows.  `std` is small, so that
    activations stay finite in half precision however deep the model is.
    """
    for window in windows:
        target = window.target
        if not target.is_floating_point():
            target.zero_()
            continue
        generator = torch.Generator(device=target.device)
        generator.manual_seed(zlib.crc32(f"{seed} {window.name}".encode()))
        target.normal_(0.0, std, generator=generator)
