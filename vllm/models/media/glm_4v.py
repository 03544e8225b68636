"""How GLM-4V sees: eva 2 clip, whose norms are behind its branches, and a convolution that makes four patches one.

tokens       <|begin_of_image|>  v v v … v  <|end_of_image|>
positions            p           p + 1 each      p + 2
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class Eye(nn.Module):
    """The tower of a GLM4VForCausalLM."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        from transformers.activations import ACT2FN

        eye, text = config.eye, config.text_config
        width, self.heads, self.place = eye["hidden_size"], eye["num_heads"], config.image_token_id
        self.patch_embedding: Any = nn.Module()
        self.patch_embedding.proj = nn.Conv2d(eye["in_channels"], width, eye["patch_size"], eye["patch_size"])
        self.patch_embedding.cls_embedding = nn.Parameter(torch.zeros(1, width))
        self.patch_embedding.position_embedding = nn.Embedding(eye["num_positions"], width)
        self.transformer: Any = nn.Module()
        block = (width, eye["intermediate_size"], eye["num_heads"], ACT2FN[eye["hidden_act"]], eye["layer_norm_eps"])
        self.transformer.layers = nn.ModuleList(_Block(*block) for _ in range(eye["num_hidden_layers"]))
        self.conv = nn.Conv2d(width, text.hidden_size, 2, 2)
        self.linear_proj = _Projector(text.hidden_size, text.ffn_hidden_size)
        self.boi, self.eoi = (nn.Parameter(torch.zeros(1, 1, text.hidden_size)) for _ in range(2))
        self.scaling_factor = eye["scaling_factor"]

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Return the embeddings of a picture, and of what is before and behind it.  [3, S, S] -> [n, D]"""
        embed = self.patch_embedding
        x = embed.proj(pixel_values[None]).flatten(2).mT
        x = torch.cat((embed.cls_embedding[None], x), dim=1) + embed.position_embedding.weight
        for layer in self.transformer.layers:
            x = layer(x)
        side = round((x.shape[1] - 1) ** 0.5)
        x = self.linear_proj(self.conv(x[:, 1:].mT.unflatten(2, (side, side))).flatten(2).mT)
        found: Tensor = torch.cat((self.boi, x, self.eoi), dim=1)[0] / self.scaling_factor
        return found

    def get_rope_index(self, input_ids: Tensor, mm_token_type_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the positions of a prompt's tokens, of which the patches of a picture have one together.  [1, n] -> [3, 1, n], [1]"""
        is_place = (input_ids == self.place) & (mm_token_type_ids == 1)
        same = functional.pad(is_place[:, 1:] & is_place[:, :-1], (1, 0))
        positions = (~same).cumsum(dim=1) - 1
        return positions.expand(3, -1, -1), positions[:, -1] + 1 - input_ids.shape[1]


class _Block(nn.Module):
    """[N, n, E] -> [N, n, E]"""

    def __init__(self, width: int, inner: int, heads: int, activation: Any, eps: float) -> None:
        super().__init__()
        self.heads, self.activation = heads, activation
        self.input_layernorm, self.post_attention_layernorm = (nn.LayerNorm(width, eps=eps) for _ in range(2))
        self.attention: Any = nn.Module()
        self.attention.query_key_value, self.attention.dense = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp: Any = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.attention.query_key_value(x).chunk(3, dim=-1)
        heads = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        seen = functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        x = x + self.input_layernorm(self.attention.dense(seen))
        found: Tensor = x + self.post_attention_layernorm(self.mlp.fc2(self.activation(self.mlp.fc1(x))))
        return found


class _Projector(nn.Module):
    """[N, n, D] -> [N, n, D]"""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.linear_proj, self.norm1 = nn.Linear(width, width, bias=False), nn.LayerNorm(width)
        self.gate_proj, self.dense_h_to_4h = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.dense_4h_to_h = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.gelu(self.norm1(self.linear_proj(x)))
        found: Tensor = self.dense_4h_to_h(functional.silu(self.gate_proj(x)) * self.dense_h_to_4h(x))
        return found
