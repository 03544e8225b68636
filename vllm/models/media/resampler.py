"""A fixed number of embeddings, however many patches a picture has: learnt queries attend to them.

patches  p p p p p … p   ──▶   q q … q
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Resampler(nn.Module):
    """Learnt queries that attend to patches, of which keys or values know where they are."""

    def __init__(self, num_queries: int, width: int, patch_width: int, knowing: str) -> None:
        super().__init__()
        self.knowing = knowing
        self.query = nn.Parameter(torch.zeros(num_queries, width))
        self.kv_proj = nn.Linear(patch_width, width, bias=False) if patch_width != width else nn.Identity()
        self.attn = nn.MultiheadAttention(width, width // 128)
        self.ln_q, self.ln_kv, self.ln_post = (nn.LayerNorm(width, eps=1e-6) for _ in range(3))
        self.proj = nn.Parameter(torch.zeros(width, width))

    def forward(self, x: Tensor, rows: int, columns: int) -> Tensor:
        """Make embeddings of a grid of patches.  [rows · columns, E] -> [n, D]"""
        x = self.ln_kv(self.kv_proj(x))
        where = waves_of(rows, columns, x.shape[1], x.device).to(x.dtype)
        keys, values = (x + where, x) if self.knowing == "keys" else (x, x + where)
        seen, _ = self.attn(self.ln_q(self.query), keys, values, need_weights=False)
        found: Tensor = self.ln_post(seen) @ self.proj
        return found


def waves_of(rows: int, columns: int, width: int, device: torch.device) -> Tensor:
    """Return sines and cosines of each patch's column, then of its row.  -> [rows · columns, width] float32"""
    rates = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float32, device=device) / (width / 4))
    places = (torch.arange(count, dtype=torch.float32, device=device)[:, None] * rates for count in (columns, rows))
    by_column, by_row = (torch.cat((angles.sin(), angles.cos()), dim=1) for angles in places)
    return torch.cat((by_column.repeat(rows, 1), by_row.repeat_interleave(columns, dim=0)), dim=1)
