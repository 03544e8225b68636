"""How Qwen-VL sees: a vision transformer for squares of any size, and queries with places of their own that attend to it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_EPS = 1e-6


class Eye(nn.Module):
    """The tower of a QwenVLForConditionalGeneration."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        eye = config.eye
        width, out, count = eye["width"], eye["output_dim"], eye.get("n_queries", 256)
        self.conv1 = nn.Conv2d(3, width, eye["patch_size"], eye["patch_size"], bias=False)
        self.positional_embedding = nn.Parameter(torch.zeros(256, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width, eps=_EPS), nn.LayerNorm(out, eps=_EPS)
        self.transformer: Any = nn.Module()
        inner, heads = int(width * eye["mlp_ratio"]), eye["heads"]
        self.transformer.resblocks = nn.ModuleList(_Block(width, inner, heads) for _ in range(eye["layers"]))
        self.attn_pool = _Queries(count, width, out)
        self.proj = nn.Parameter(torch.zeros(out, out))

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """[3, S, S] -> [n, D]"""
        x = self.conv1(pixel_values[None]).flatten(2).mT[0]
        x = self.ln_pre(x + _stretched(self.positional_embedding, len(x)))
        for block in self.transformer.resblocks:
            x = block(x)
        found: Tensor = self.ln_post(self.attn_pool(x)) @ self.proj
        return found


class _Block(nn.Module):
    """[n, E] -> [n, E]"""

    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width, eps=_EPS), nn.LayerNorm(width, eps=_EPS)
        self.attn: Any = nn.Module()
        self.attn.in_proj, self.attn.out_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp: Any = nn.Module()
        self.mlp.c_fc, self.mlp.c_proj = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.attn.in_proj(self.ln_1(x)).unflatten(1, (self.heads, 3, -1)).permute(2, 1, 0, 3)  # head by head
        seen = functional.scaled_dot_product_attention(q[None], k[None], v[None])[0]
        x = x + self.attn.out_proj(seen.transpose(0, 1).flatten(1))
        found: Tensor = x + self.mlp.c_proj(functional.gelu(self.mlp.c_fc(self.ln_2(x))))
        return found


class _Queries(nn.Module):
    """[n, E] -> [queries, D]"""

    def __init__(self, count: int, width: int, out: int) -> None:
        super().__init__()
        self.query, self.pos_embed = (nn.Parameter(torch.zeros(count, out)) for _ in range(2))
        self.kv_proj = nn.Linear(width, out, bias=False) if width != out else nn.Identity()
        self.attn = nn.MultiheadAttention(out, out // 128)
        self.ln_q, self.ln_kv = nn.LayerNorm(out, eps=_EPS), nn.LayerNorm(out, eps=_EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.ln_kv(self.kv_proj(x))
        queries, keys = self.ln_q(self.query) + self.pos_embed, x + _stretched(self.pos_embed, len(x))
        found, _ = self.attn(queries, keys, x, need_weights=False)
        return found  # type: ignore[no-any-return]


def _stretched(places: Tensor, count: int) -> Tensor:
    """Return the embeddings of a square's places for a square of another size.  [m, E] -> [count, E]"""
    if len(places) == count:
        return places
    before, after = round(len(places) ** 0.5), round(count**0.5)
    grid = places.float().mT.unflatten(1, (before, before))[None]
    grid = functional.interpolate(grid, size=(after, after), mode="bicubic", align_corners=False)
    return grid[0].flatten(1).mT.to(places.dtype)
