"""How Qwen-VL sees a picture: as a square of one size, whatever its shape."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm.inputs.media.tiles import BICUBIC, CLIP, normalized
from vllm.messages import Modality


class QwenVL:
    """What prepares pictures for a QwenVLForConditionalGeneration."""

    placeholders: Mapping[Modality, str] = {"image": "<img></img>"}
    spelled: Mapping[Modality, str] = {"image": r"<img>[^<]+</img>"}

    def __init__(self, folder: Path) -> None:
        eye = json.loads((folder / "config.json").read_bytes())["visual"]
        self.size, self.num_places = int(eye["image_size"]), int(eye.get("n_queries", 256))

    def prepare(self, modality: Modality, data: Any, **options: Any) -> tuple[str, Mapping[str, Any]]:
        """Return the places of a picture, and its pixels.  Raises ValueError for any option."""
        if options:
            raise ValueError(f"mm_processor_kwargs: there are no options, and {min(options)!r} is given")
        pixels = normalized(data.resize((self.size, self.size), BICUBIC), CLIP)
        return "<img>" + "<imgpad>" * self.num_places + "</img>", {"pixel_values": pixels}
