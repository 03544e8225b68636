"""How Molmo sees: clip, two of its layers side by side, of which four patches are pooled by attention.

The marks of a picture's rows are tokens that the text's vocabulary lacks; the tower embeds them too, and what it sees is added to
the embedding of its token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_LAYERS = (-1, -8)
"""Whose states are looked at, from behind"""


class Eye(nn.Module):
    """The tower of a MolmoForCausalLM."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        from transformers import CLIPVisionModel

        vision, text = config.vision_config, config.text_config
        width = vision.hidden_size
        self.image_vit = CLIPVisionModel(vision)
        self.image_vit.set_submodule("post_layernorm", nn.Identity())  # of clip's own summary, which Molmo has not
        self.pad_embed = nn.Parameter(torch.zeros(2, width * len(_LAYERS)))
        self.image_pooling_2d = _Pooling(width, vision.num_attention_heads)
        self.image_projector = _Projector(width, text.intermediate_size, text.hidden_size)
        self.new_embedding = nn.Parameter(torch.zeros(config.num_new_tokens, text.hidden_size))
        self.first_new, self.place = text.vocab_size, config.image_token_id

    def get_image_features(self, pixel_values: Tensor, shares: Tensor, order: Tensor, input_ids: Tensor) -> Tensor:
        """Return the embeddings of a picture's tokens.

        [1 + crops, 3, S, S], [1 + crops, n] what share of a patch is of the picture, [m] which crops' embeddings count after those
        of the whole, [k] tokens -> [k, D]
        """
        states = self.image_vit(pixel_values, output_hidden_states=True).hidden_states
        x = torch.cat([states[layer][:, 1:] for layer in _LAYERS], dim=-1)
        is_out, is_edge = shares == 0, (shares != 0) & (shares < 1)
        x = x + self.pad_embed[0] * is_out[..., None] + self.pad_embed[1] * is_edge[..., None]
        side = round(x.shape[1] ** 0.5) // 2
        four = x.unflatten(1, (side, 2, side, 2)).transpose(2, 3).reshape(-1, 4, x.shape[-1])
        seen = self.image_projector(self.image_pooling_2d(four))
        found = self.new_embedding[input_ids - self.first_new]
        found[input_ids == self.place] += torch.cat((seen[: side * side], seen[order]))
        return found


class _Pooling(nn.Module):
    """The mean of four patches attends to them.  [n, 4, 2 E] -> [n, E]"""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.wq, self.wk, self.wv = (nn.Linear(width * len(_LAYERS), width) for _ in range(3))
        self.wo = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.wq(x.mean(dim=1, keepdim=True)), self.wk(x), self.wv(x)
        heads = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        found: Tensor = self.wo(functional.scaled_dot_product_attention(*heads).flatten(1))
        return found


class _Projector(nn.Module):
    """[n, E] -> [n, D]"""

    def __init__(self, width: int, inner: int, text_width: int) -> None:
        super().__init__()
        self.w1, self.w3 = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.w2 = nn.Linear(inner, text_width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.w2(functional.silu(self.w1(x)) * self.w3(x))
        return found
