"""How GLM-4V sees a picture: as a square of one size, whatever its shape."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm.inputs.media.tiles import BICUBIC, CLIP, normalized
from vllm.messages import Modality


class GLM4V:
    """What prepares pictures for a GLM4VForCausalLM."""

    placeholders: Mapping[Modality, str] = {"image": "<|begin_of_image|><|endoftext|><|end_of_image|>"}

    def __init__(self, folder: Path) -> None:
        vision = json.loads((folder / "config.json").read_bytes())["vision_config"]
        self.size = int(vision["image_size"])
        self.num_places = (self.size // int(vision["patch_size"]) // 2) ** 2

    def prepare(self, modality: Modality, data: Any, **options: Any) -> tuple[str, Mapping[str, Any]]:
        """Return the places of a picture, and its pixels.  Raises ValueError for any option."""
        if options:
            raise ValueError(f"mm_processor_kwargs: there are no options, and {min(options)!r} is given")
        places = "<|begin_of_image|>" + "<|endoftext|>" * self.num_places + "<|end_of_image|>"
        return places, {"pixel_values": normalized(data.resize((self.size, self.size), BICUBIC), CLIP)}
