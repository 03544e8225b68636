"""From the hidden states of prompts to embeddings, or to probabilities of classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from vllm.pooling_params import PoolingParams


@dataclass(frozen=True, slots=True)
class PoolingRow:
    """What is known of one prompt."""

    hidden: Tensor
    """[n, D] the hidden states of all its tokens, or [1, D] of the last one where the others don't count"""
    token_ids: Tensor
    """[n] int64, on the host: the whole prompt"""
    params: PoolingParams


class Pooler(nn.Module):
    """Pools prompts; each by itself, whatever is beside it."""

    def forward(self, rows: Sequence[PoolingRow]) -> list[Tensor]:
        """Return a vector [N], or one per token [n, N], for each prompt; float32, on the host."""
        raise NotImplementedError
