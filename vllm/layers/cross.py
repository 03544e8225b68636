"""Encoders beside a decoder: what reads a source, and attention of the decoder's tokens to what was made of it.

source ─▶ entry ─▶ blocks ─▶ norm ─▶ k, v of every layer ─▶ cache        once
                                               │
                       decoder's token ─▶ q ───┴─▶ attention             each step
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vllm.kv_cache.spec import Cross
from vllm.layers.linear import Linear
from vllm.layers.step import Step
from vllm.ops.attention import AttentionOptions
from vllm.ops.memory import tensor_of


class Encoder(nn.Module):
    """Reads sources.  Its attention sees both ways, so nothing of it is kept."""

    def __init__(self, entry: nn.Module, blocks: Sequence[nn.Module], norm: nn.Module, longest: int) -> None:
        """`longest`: the most tokens of a source."""
        super().__init__()
        self.entry = entry
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm
        self.longest = longest

    def forward(self, step: Step) -> Tensor:
        """Return what it makes of each of the sources' tokens.  -> [T, D]"""
        x = self.entry(step)
        for block in self.blocks:
            x = block(x, step)
        return self.norm(x)


class CrossAttention(nn.Module):
    """Attention to a source.  [T, D] -> [T, D]"""

    def __init__(
        self, index: int, spec: Cross, query: Linear, key_value: Linear, out: Linear, options: AttentionOptions
    ) -> None:
        super().__init__()
        self.index = index
        self.cache_spec = spec
        self.query, self.key_value, self.out = query, key_value, out
        self.options = options

    def forward(self, x: Tensor, step: Step, residual: Tensor | None = None) -> Tensor:
        q = self.query(x).unflatten(1, (-1, self.cache_spec.head_dim))
        cache, plan = step.caches[self.index], step.plans[step.group_of[self.index]]
        return self.out(step.attention.attend(q, self.cache_spec, cache, plan, self.options).flatten(1), residual)

    def read(self, source: Tensor, step: Step) -> None:
        """Keep keys and values of what an encoder made, where the step's plan says.  [T, D]"""
        heads = self.key_value(source).unflatten(1, (-1, self.cache_spec.head_dim))
        k, v = heads.split(self.cache_spec.kv_heads, dim=1)
        step.attention.write(k, v, step.caches[self.index], step.plans[step.group_of[self.index]])


@dataclass(frozen=True, slots=True)
class Hearing:
    """The two convolutions over frames of sound with which whisper begins."""

    bands: int
    """Of frequencies in a frame"""
    activation: str


class SoundInput(nn.Module):
    """From frames of sounds to the first hidden state.  -> [T, D]

    A convolution of three frames is a product with three rows side by side; the second one takes every other place.
    """

    def __init__(self, first: Linear, second: Linear, bands: int) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.bands = bands

    def forward(self, step: Step) -> Tensor:
        sounds = [self._hear(row.media[0].features["input_features"], step) for row in step.rows.each()]
        return torch.cat(sounds)

    def _hear(self, features: object, step: Step) -> Tensor:
        frames = tensor_of(features).reshape(self.bands, -1).T  # type: ignore[arg-type]
        x = frames.to(step.token_ids.device, self.first.matrix.shape.dtype)
        return self.second(_threes(self.first(_threes(x, 1)), 2))


def _threes(x: Tensor, stride: int) -> Tensor:
    """Lay each row's neighbours beside it, zeros beyond the ends; of every `stride`-th row.  [T, D] -> [T / stride, 3 D]"""
    padded = nn.functional.pad(x, (0, 0, 1, 1))
    return padded.unfold(0, 3, stride).transpose(1, 2).flatten(1)
