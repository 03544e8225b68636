"""How Phi-3-V sees: four patches become one embedding, and what ends a row, or parts the squares from the whole, is learnt.

squares, side by side        whole
v v v v v v /                v v v /
v v v v v v /        |       v v v /
…                            …
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vllm.models.media.squares import laid, shuffled


class Eye(nn.Module):
    """The tower of a Phi3VForCausalLM."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        from transformers import CLIPVisionModel

        self.img_processor = CLIPVisionModel(config.vision_config)
        width, text_width = 4 * config.vision_config.hidden_size, config.text_config.hidden_size
        self.sub_GN = nn.Parameter(torch.zeros(1, 1, 1, width))
        self.glb_GN = nn.Parameter(torch.zeros(1, 1, width))
        self.img_projection = nn.Sequential(nn.Linear(width, text_width), nn.GELU(), nn.Linear(text_width, text_width))

    def get_image_features(self, pixel_values: Tensor, grid: Tensor) -> Tensor:
        """Return the embeddings of a picture's squares, the whole first.  [1 + rows · columns, 3, S, S], [2] -> [n, D]"""
        seen = shuffled(self.img_processor(pixel_values).last_hidden_state[:, 1:], 2)
        rows, columns = grid.tolist()
        end = self.sub_GN.flatten()
        found: Tensor = self.img_projection(
            torch.cat((laid(seen[1:], rows, columns, end), self.glb_GN[0], laid(seen[:1], 1, 1, end)))
        )
        return found
