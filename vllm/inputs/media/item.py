"""One image, video or sound of a prompt, as it came."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm.messages import Array, Modality

MODALITIES: tuple[Modality, ...] = ("image", "video", "audio")


@dataclass(frozen=True, slots=True)
class MediaItem:
    """One image, video or sound."""

    modality: Modality
    data: Any
    """An image: a PIL image in RGB.  A video: uint8 frames [N, H, W, 3].  A sound: `Sound`.  Or, of any modality, a float
    tensor [n, D] of what the model's tower would make of it."""
    uuid: str | None = None
    """What the sender calls it: the same name, the same content."""


@dataclass(frozen=True, slots=True)
class Sound:
    """Samples of one channel."""

    samples: Any
    """float32 [N], within [-1, 1]"""
    rate: int
    """Samples per second"""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a processor made of one item."""

    key: bytes
    """Names content and treatment"""
    stand_in: str
    """What takes the place of its placeholder in the text"""
    features: dict[str, Array]

    @property
    def num_bytes(self) -> int:
        return sum(len(array.data) for array in self.features.values())
