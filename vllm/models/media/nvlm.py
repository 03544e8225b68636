"""How NVLM-D sees: InternVL's encoder, of which four patches become one embedding by way of the text's inner width."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vllm.models.media.squares import shuffled


class Eye(nn.Module):
    """The tower of an NVLM_D_Model."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        from transformers.models.internvl.modeling_internvl import InternVLVisionModel

        self.vision_tower = InternVLVisionModel(config.vision_config)
        self.joined = round(1 / config.downsample_ratio)
        self.layer = config.vision_feature_layer
        width, text = config.vision_config.hidden_size * self.joined**2, config.text_config
        self.mlp1 = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, text.intermediate_size, bias=False),
            nn.GELU(),
            nn.Linear(text.intermediate_size, text.hidden_size, bias=False),
        )

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """[tiles, 3, H, W] -> [tiles, n, D]"""
        seen = self.vision_tower(pixel_values, output_hidden_states=True).hidden_states[self.layer][:, 1:]
        found: Tensor = self.mlp1(shuffled(seen, self.joined))
        return found
