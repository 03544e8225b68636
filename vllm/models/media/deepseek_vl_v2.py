"""How DeepSeek-VL2 sees: siglip, of which four patches become one embedding, and learnt ends of rows and of the whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vllm.models.media.squares import laid


class Eye(nn.Module):
    """The tower of a DeepseekVLV2ForCausalLM."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        from transformers import SiglipVisionModel

        self.vision = SiglipVisionModel(config.vision_config)
        self.joined, self.whole_first = config.projector["downsample_ratio"], config.whole_first
        width = config.text_config.hidden_size
        inner, depth = width * config.projector["mlp_ratio"], config.projector["depth"]
        sizes = [config.vision_config.hidden_size * self.joined**2, *[inner] * (depth - 1), width]
        layers = [layer for pair in zip(sizes, sizes[1:], strict=False) for layer in (nn.Linear(*pair), nn.GELU())]
        self.projector: Any = nn.Module()
        self.projector.layers = nn.Sequential(*layers[:-1])
        self.image_newline, self.view_seperator = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))

    def get_image_features(self, pixel_values: Tensor, grid: Tensor) -> Tensor:
        """Return the embeddings of a picture's squares, the whole first.  [1 + rows · columns, 3, S, S], [2] -> [n, D]"""
        seen = self.projector.layers(self._joined(self.vision(pixel_values).last_hidden_state))
        rows, columns = grid.tolist()
        whole, large = laid(seen[:1], 1, 1, self.image_newline), laid(seen[1:], rows, columns, self.image_newline)
        first, second = (whole, large) if self.whole_first else (large, whole)
        return torch.cat((first, self.view_seperator[None], second))

    def _joined(self, x: Tensor) -> Tensor:
        """Join neighbouring patches, channel by channel, with zeros beyond an edge.  [N, S · S, E] -> [N, n, joined² · E]"""
        side = round(x.shape[1] ** 0.5)
        lacking = -side % self.joined
        grid = functional.pad(x.mT.unflatten(2, (side, side)), (0, lacking, 0, lacking))
        return functional.unfold(grid, self.joined, stride=self.joined).mT
