"""How MiniCPM-V sees: siglip on pictures of any shape, whose positions are those of the square it was trained with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vllm.models.media.resampler import Resampler


class Eye(nn.Module):
    """The tower of a MiniCPMV."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        from transformers import SiglipVisionModel

        config.vision_config.vision_use_head = False
        vision, knowing = config.vision_config, "values" if config.version == "4.5" else "keys"
        self.vpm = SiglipVisionModel(vision)
        self.resampler = Resampler(config.query_num, config.text_config.hidden_size, vision.hidden_size, knowing)
        self.side = vision.image_size // vision.patch_size
        self.is_first = config.version == "2.5"

    def get_image_features(self, patches: Tensor, sizes: Tensor) -> Tensor:
        """Return the embeddings of a picture's parts, which have so many rows and columns of patches.

        [n, 3 · P · P], [parts, 2] -> [m, D]
        """
        parts, grids = patches.split(sizes.prod(dim=1).tolist()), sizes.tolist()
        seen = self._in_rows(parts) if self.is_first else [self._seen(*one) for one in zip(parts, grids, strict=True)]
        return torch.cat([self.resampler(x, *grid) for x, grid in zip(seen, grids, strict=True)])

    def _seen(self, part: Tensor, grid: tuple[int, int]) -> Tensor:
        """[n, 3 · P · P] -> [n, E]"""
        by_row, by_column = (_stretched(count, self.side) for count in grid)
        return self._encoded(part[None], (by_row[:, None] * self.side + by_column).flatten())[0]

    def _in_rows(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Take parts for single rows of patches, all as long as the longest: so the first version has been trained."""
        rows = nn.utils.rnn.pad_sequence(list(parts), batch_first=True)
        seen = self._encoded(rows, _stretched(rows.shape[1], self.side))
        return [x[: len(part)] for x, part in zip(seen, parts, strict=True)]

    def _encoded(self, patches: Tensor, positions: Tensor) -> Tensor:
        """[N, n, 3 · P · P], [n] -> [N, n, E]"""
        embed = self.vpm.embeddings
        x = functional.linear(patches, embed.patch_embedding.weight.flatten(1), embed.patch_embedding.bias)
        x = x + embed.position_embedding.weight[positions]
        for layer in self.vpm.encoder.layers:
            x = layer(x, None)
        found: Tensor = self.vpm.post_layernorm(x)
        return found


def _stretched(count: int, side: int) -> Tensor:
    """Return the positions of so many patches in a row of `side` that they are spread over.  -> [count] int64"""
    step = float(1 / torch.tensor(count))  # in float32, as their place decides where it falls on an edge
    return torch.bucketize(torch.arange(0, 1 - 1e-6, step), torch.arange(1 / side, 1.0, 1 / side), right=True)
