"""Embeddings of the few tokens that end at each, beside its own: longcat flash lite.  https://arxiv.org/abs/2601.21204

    a b c d     d's n-grams: cd, bcd, abcd; each looks up rows of several tables, by remainders of what it is as a number

The tokens before a step's are remembered as a recurrent layer's inputs are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from vllm import ops
from vllm.kv_cache.spec import State, StateTensor
from vllm.layers.embedding import Embedding
from vllm.layers.linear import Linear
from vllm.layers.recurrent import states_of
from vllm.layers.step import Step


class NgramInput(nn.Module):
    """The mean of a token's embedding and those of the n-grams that end there.  -> [T, D]"""

    shifts: Tensor
    powers: Tensor
    sizes: Tensor

    def __init__(
        self,
        index: int,
        tokens: Embedding,
        tables: Sequence[Embedding],
        projections: Sequence[Linear],
        powers: Tensor,
        end: int,
    ) -> None:
        """`index` counts the layers that have a cache, in call order.  `powers` [tables, N - 1] int64 are what the tokens before
        are multiplied with, the nearest first; after the token `end` begins another text."""
        super().__init__()
        self.index = index
        self.tokens = tokens
        self.tables = nn.ModuleList(tables)
        self.projections = nn.ModuleList(projections)
        self.end = end
        before, device = powers.shape[1], powers.device
        # ids are exact in float32; channel c sees the token c + 1 before
        self.register_buffer(
            "shifts", torch.eye(before + 1, before, device=device).flip(0).roll(-1, 0), persistent=False
        )
        self.register_buffer("powers", powers, persistent=False)
        sizes = torch.tensor([table.matrix.shape.rows for table in tables], device=device)
        self.register_buffer("sizes", sizes, persistent=False)

    @property
    def cache_spec(self) -> State:
        """What memory the tokens before need."""
        before = self.powers.shape[1]
        return State((StateTensor((before, before), "float32"),))

    def forward(self, step: Step) -> Tensor:
        rows = self.rows(step)
        x = self.tokens(step.token_ids)
        for number, (table, project) in enumerate(zip(self.tables, self.projections, strict=True)):
            x = project(table(rows[:, number].contiguous()), x)
        return cast("Tensor", x / (1 + len(self.tables)))

    def rows(self, step: Step) -> Tensor:
        """Return the rows of the tables that belong to a step's tokens.  -> [T, tables]"""
        (memory,), plan = states_of(step, self.index)
        ids = step.token_ids.float()[:, None].repeat(1, self.powers.shape[1])
        before = ops.causal_conv(ids, self.shifts, None, memory, plan).long()
        ended = (before == self.end).cumsum(1) > 0
        known = before.masked_fill(ended, 0)
        numbers = step.token_ids.long()[:, None] + (known[:, None] * self.powers).sum(-1)
        return numbers % self.sizes
