"""How much memory the cache of a module of transformers takes: measured at two lengths, since each kind of cache is its own.

bytes                    ┌──── a layer with a window: no more than at its end
  │          ╱──────────
  │       ╱    measured at `SHORT` and at twice that, and a line through both
  │    ╱
  └──────────────────────── tokens
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

SHORT = 8
"""Tokens of the shorter one"""


@dataclass(frozen=True, slots=True)
class Growth:
    """What one part of a cache holds of a sequence."""

    short: int
    """Bytes after `SHORT` tokens"""
    long: int
    """Bytes after twice as many"""
    window: int | None
    """Tokens of which it holds something at most; None: all of them"""

    def num_bytes(self, num_tokens: int) -> int:
        """Return the bytes that it holds of a sequence of so many tokens; never less than was measured."""
        held = num_tokens if self.window is None else min(num_tokens, self.window)
        return self.long + max(0, held - 2 * SHORT) * max(0, self.long - self.short) // SHORT


def measure_growth(filled: Callable[[int], Any]) -> tuple[Growth, ...]:
    """Measure a cache, part by part.  `filled` returns one that has so many tokens, in the form that its module gave it."""
    pairs = zip(_parts(filled(SHORT)), _parts(filled(2 * SHORT)), strict=True)
    return tuple(Growth(_num_bytes(short), _num_bytes(long), _window(long)) for short, long in pairs)


def _parts(cache: Any) -> list[Any]:
    """Return a cache's layers; where it isn't made of layers, all of it."""
    return list(getattr(cache, "layers", None) or [cache])


def _window(layer: Any) -> int | None:
    """Return the tokens that a layer keeps at most.  A model's own kind of layer may keep others beside its window (deepseek_v4)."""
    window = getattr(layer, "sliding_window", None)
    is_known = type(layer).__module__ == "transformers.cache_utils"
    return window if is_known and isinstance(window, int) else None


def _num_bytes(part: Any) -> int:
    """Return the bytes of the memory that a part's tensors lie in, views and what is shared counted once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in _tensors(part, set())}
    return sum(storage.nbytes() for storage in storages.values())


def _tensors(part: Any, seen: set[int]) -> Iterator[Tensor]:
    if id(part) in seen or isinstance(part, nn.Module | type | str | torch.dtype | torch.device):
        return
    seen.add(id(part))
    if isinstance(part, Tensor):
        yield part
    elif isinstance(part, dict):
        for value in part.values():
            yield from _tensors(value, seen)
    elif isinstance(part, list | tuple | set):
        for value in part:
            yield from _tensors(value, seen)
    else:
        yield from _tensors(getattr(part, "__dict__", {}), seen)
