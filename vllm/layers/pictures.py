"""Layers that attend to pictures: llama 3.2.

    picture ─▶ tower ─▶ k, v of every such layer ─▶ cache, in whole blocks          once
                                                        │
    x ─▶ norm ─▶ q ─────────────────────────────────────┴─▶ attention ─▶ gate ─▶ +  each step

A token sees the pictures that stand together last at or before it.  One with none before it sees all of its sequence's, also
what fills them up, and its feed-forward is left out, as in transformers.  Sequences without pictures pass by.

What a query may not see is written into the keys, so that no kernel knows of it: two more elements, the first of which is far
below zero behind a picture's end, the second in what fills a picture up.  A query has 1 there, or 0 where it may see it.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum

import torch
from torch import Tensor, nn

from vllm.kv_cache.spec import Cross
from vllm.layers.linear import Linear
from vllm.layers.placement import Placement
from vllm.layers.step import Step
from vllm.ops.attention import AttentionOptions
from vllm.weights import TensorPlace, Window

MARKS = 2
"""How many elements keys and queries have beside their own"""
_FAR = -32768.0
"""Times a head's scale, so low a score that its weight is 0; exact in every dtype"""


class View(IntEnum):
    """What a token sees of pictures."""

    NOTHING = 0
    """Its sequence has none."""
    ALL = 1
    """None stands before it."""
    BEHIND = 2
    """Those before it"""


class Sight(nn.Module):
    """What the tokens of a step see."""

    def __init__(self) -> None:
        super().__init__()
        self.any = True
        """Whether one sees anything"""
        self.marks = self.attends = self.feeds = torch.empty(0)
        """Of queries [T, 2]; which tokens attend at all, and which of them have a feed-forward [T, 1] bool"""

    def make_room(self, max_tokens: int, dtype: torch.dtype, device: torch.device) -> None:
        """Be ready for steps of up to so many tokens."""
        self.marks = torch.ones(max_tokens, MARKS, dtype=dtype, device=device)
        self.attends, self.feeds = (torch.zeros(max_tokens, 1, dtype=torch.bool, device=device) for _ in range(2))

    def fill(self, views: Tensor, *, any: bool) -> None:
        """Take note of the `View` of each token of a step.  [T]"""
        count = len(views)
        self.marks[:count, 1] = (views == View.BEHIND).to(self.marks.dtype)
        self.attends[:count, 0] = views != View.NOTHING
        self.feeds[:count, 0] = views == View.BEHIND
        self.any = any


def marks_of(filling: Tensor, padded: int, dtype: torch.dtype) -> Tensor:
    """Return the marks of a picture's keys, and of what is behind them up to `padded`.  [n] bool -> [padded, 2]"""
    marks = torch.zeros(padded, MARKS, dtype=dtype, device=filling.device)
    marks[len(filling) :, 0] = _FAR
    marks[: len(filling), 1] = filling.to(dtype) * _FAR
    return marks


class PictureAttention(nn.Module):
    """Attention to pictures.  [T, D] -> [T, D]"""

    def __init__(
        self,
        index: int,
        spec: Cross,
        products: tuple[Linear, Linear, Linear],
        norms: tuple[nn.Module, nn.Module],
        sight: Sight,
        scale: float,
    ) -> None:
        """`products` make queries, keys above values, and the result; `norms` are of each head of q and of k."""
        super().__init__()
        self.index = index
        self.cache_spec = spec
        self.query, self.key_value, self.out = products
        self.q_norm, self.k_norm = norms
        self.sight = sight
        self.options = AttentionOptions(scale, causal=False)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        spec = self.cache_spec
        q = self.q_norm(self.query(x).unflatten(1, (-1, spec.value_dim)))
        cache, plan = step.caches[self.index], step.plans[step.group_of[self.index]]
        found = step.attention.attend(_marked(q, self.sight.marks[: len(x)]), spec, cache, plan, self.options)
        return self.out(found.flatten(1))

    def look(self, states: Tensor, marks: Tensor, step: Step) -> None:
        """Keep keys and values of a picture, where the step's plan says.  [n, D], [n, 2]"""
        spec = self.cache_spec
        k, v = self.key_value(states).unflatten(1, (-1, spec.value_dim)).split(spec.kv_heads, dim=1)
        plan = step.plans[step.group_of[self.index]]
        step.attention.write(_marked(self.k_norm(k), marks), v, step.caches[self.index], plan)


def _marked(heads: Tensor, marks: Tensor) -> Tensor:
    """Give each head of a token its marks.  [T, H, E], [T, 2] -> [T, H, E + 2]"""
    return torch.cat((heads, marks[:, None].expand(-1, heads.shape[1], -1)), dim=2)


class Gate(nn.Module):
    """x · tanh(a learned number).  [T, D] -> [T, D]"""

    def __init__(self, name: str, placement: Placement) -> None:
        """`name` is the whole name in the checkpoint."""
        super().__init__()
        self.name = name
        self.value = placement.parameter(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.value.tanh() * x

    def windows(self) -> Iterator[Window]:
        yield Window(self.name, TensorPlace(self.value))


class PictureBlock(nn.Module):
    """Norm, branch, gate, add: attention to pictures, and a feed-forward.  [T, D] -> [T, D]"""

    def __init__(
        self,
        attention: PictureAttention,
        ffn: nn.Module,
        norms: tuple[nn.Module, nn.Module],
        gates: tuple[Gate, Gate],
    ) -> None:
        super().__init__()
        self.attention, self.ffn = attention, ffn
        self.before_attention, self.before_ffn = norms
        self.attention_gate, self.ffn_gate = gates
        self.sight = attention.sight

    def forward(self, x: Tensor, step: Step) -> Tensor:
        if not self.sight.any:
            return x
        count = len(x)
        seen = self.attention_gate(self.attention(self.before_attention(x), step))
        x = torch.where(self.sight.attends[:count], x + seen, x)
        fed = self.ffn_gate(self.ffn(self.before_ffn(x)))
        return torch.where(self.sight.feeds[:count], x + fed, x)
