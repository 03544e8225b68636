"""Rotary position embeddings, and the ways to stretch them to more positions than a model was trained with.

All of them change the frequencies, some also the length of the rotated vectors.  Which frequencies hold is decided
once, from the longest sequence that is served, so that a request's result never depends on its neighbours' lengths.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from vllm import ops


class Stretch(Protocol):
    """A way to change the frequencies."""

    def frequencies(self, theta: float, width: int, max_model_len: int) -> tuple[Tensor, float]:
        """Return the frequencies [width / 2] in radians per token, and the factor of cosines and sines."""


@dataclass(frozen=True, slots=True)
class Rope:
    """What the rotary embedding of a layer is made of."""

    theta: float
    width: int
    """How many elements of a head are rotated; an odd number is one more, with the frequencies of the odd one."""
    stretch: Stretch
    interleaved: bool = False
    """Pairs are neighbours, not halves."""
    sections: tuple[int, ...] = ()
    """How many pairs belong to a token's position in time, in height and in width; empty: all to its only one"""
    spread: bool = False
    """Pairs of the sections take turns as long as they last, those of time fill up; else they stand one after another."""


class Rotary(nn.Module):
    """Rotates q and k.  [T, H, E], [T, G, E], [T] -> same shapes"""

    table: Tensor

    def __init__(self, rope: Rope, max_model_len: int, device: torch.device) -> None:
        super().__init__()
        self.interleaved = rope.interleaved
        self.register_buffer("table", cos_sin_table(rope, max_model_len).to(device), persistent=False)

    def forward(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        return ops.rotary(q, k, self.table, positions, self.interleaved)


class SpatialRotary(nn.Module):
    """Rotates q and k by positions in time, height and width.  [T, H, E], [T, G, E], [T] -> same shapes

    Before a step, `fill` makes a table of it, a row for each of its tokens; all layers read that.
    """

    table: Tensor

    def __init__(self, rope: Rope, max_model_len: int, device: torch.device) -> None:
        super().__init__()
        self.interleaved = rope.interleaved
        self.register_buffer("table", cos_sin_table(rope, max_model_len).to(device), persistent=False)
        self._axes = torch.tensor(2 * pair_axes(rope), device=device)  # of cosines, then of sines
        self._step = self._rows = torch.empty(0, device=device)

    def make_room(self, max_tokens: int) -> None:
        """Be ready for steps of up to so many tokens."""
        self._step = torch.zeros(max_tokens, self.table.shape[1], device=self.table.device)
        self._rows = torch.arange(max_tokens, device=self.table.device)

    def fill(self, positions: Tensor) -> None:
        """Take the positions of a step's tokens.  [3, T] int64"""
        every = self.table[positions]  # [3, T, width]
        count = positions.shape[1]
        chosen = self._axes.expand(1, count, -1)
        self._step[:count] = every.gather(0, chosen)[0]

    def forward(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        return ops.rotary(q, k, self._step, self._rows[: len(positions)], self.interleaved)


def pair_axes(rope: Rope) -> list[int]:
    """Return which of the three positions turns each pair.  -> [width / 2]"""
    count = rope.width // 2
    if not rope.spread:
        axes = [axis % 3 for axis, size in enumerate(rope.sections) for _ in range(size)]
        return axes[:count]
    axes = [0] * count
    for axis in (1, 2):
        for pair in range(axis, min(3 * rope.sections[axis], count), 3):
            axes[pair] = axis
    return axes


class NoRotary(nn.Module):
    """Leaves q and k as they are."""

    def forward(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        return q, k


@dataclass(frozen=True, slots=True)
class Tempering:
    """Queries grow with the logarithm of their position: 1 + scale · ln(1 + ⌊(position + offset) / floor⌋)."""

    floor: float
    scale: float
    offset: int = 0


class TemperedRotary(nn.Module):
    """Scales q by its position once it is rotated.  [T, H, E], [T, G, E], [T] -> same shapes"""

    factors: Tensor

    def __init__(self, rotary: nn.Module, tempering: Tempering, max_model_len: int, device: torch.device) -> None:
        super().__init__()
        self.rotary = rotary
        steps = ((torch.arange(max_model_len).float() + tempering.offset) / tempering.floor).floor()
        factors = (1 + tempering.scale * steps.log1p()).to(device)
        self.register_buffer("factors", factors, persistent=False)

    def forward(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        q, k = self.rotary(q, k, positions)
        return (q * self.factors[positions][:, None, None]).to(q.dtype), k


class NormedRotary(nn.Module):
    """Normalises the heads of q and k once they are rotated.  [T, H, E], [T, G, E], [T] -> same shapes"""

    def __init__(self, rotary: nn.Module, q_norm: nn.Module, k_norm: nn.Module) -> None:
        super().__init__()
        self.rotary = rotary
        self.q_norm, self.k_norm = q_norm, k_norm

    def forward(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        q, k = self.rotary(q, k, positions)
        return self.q_norm(q), self.k_norm(k)


def cos_sin_table(rope: Rope, max_model_len: int) -> Tensor:
    """Return the cosines, then the sines, of every position.  -> [max_model_len, width] float32"""
    frequencies, factor = rope.stretch.frequencies(rope.theta, rope.width, max_model_len)
    angles = torch.arange(max_model_len).float()[:, None] * frequencies
    return torch.cat((angles.cos() * factor, angles.sin() * factor), dim=-1)


def _wavelengths(theta: float, width: int) -> Tensor:
    """Return the tokens per radian of each pair.  -> [width / 2]"""
    return theta ** (torch.arange(0, width, 2).float() / width)


@dataclass(frozen=True, slots=True)
class Unstretched:
    """The frequencies of the paper."""

    def frequencies(self, theta: float, width: int, max_model_len: int) -> tuple[Tensor, float]:
        return 1 / _wavelengths(theta, width), 1.0


@dataclass(frozen=True, slots=True)
class Linear:
    """Position interpolation: every frequency is divided.  https://arxiv.org/abs/2306.15595"""

    factor: float

    def frequencies(self, theta: float, width: int, max_model_len: int) -> tuple[Tensor, float]:
        return 1 / _wavelengths(theta, width) / self.factor, 1.0


@dataclass(frozen=True, slots=True)
class Ntk:
    """Theta times the factor, and every frequency divided by factor^(2 / width), so that the slowest pair is
    interpolated by just the factor.  https://kexue.fm/archives/9706, equation 6"""

    factor: float

    def frequencies(self, theta: float, width: int, max_model_len: int) -> tuple[Tensor, float]:
        return 1 / _wavelengths(theta * self.factor, width) / self.factor ** (2 / width), 1.0


@dataclass(frozen=True, slots=True)
class Proportional:
    """A share of the pairs, those that turn fastest; the others stay as they are."""

    share: float
    factor: float = 1.0

    def frequencies(self, theta: float, width: int, max_model_len: int) -> tuple[Tensor, float]:
        found = 1 / _wavelengths(theta, width) / self.factor
        found[int(self.share * width // 2) :] = 0
        return found, 1.0


@dataclass(frozen=True, slots=True)
class Leading:
    """The first pairs, with the frequencies that they would have without the others; those stay as they are."""

    width: int
    """Of the elements that are rotated"""

    def frequencies(self, theta: float, width: int, max_model_len: int) -> tuple[Tensor, float]:
        found = torch.zeros(width // 2)
        found[: self.width // 2] = 1 / _wavelengths(theta, self.width)
        return found, 1.0


@dataclass(frozen=True, slots=True)
class DynamicNtk:
    """A larger theta, as much larger as the longest sequence is longer than the original ones."""

    factor: float
    original: int

    def frequencies(self, theta: float, width: int, max_model_len: int) -> tuple[Tensor, float]:
        length = max(max_model_len, self.original)
        growth = self.factor * length / self.original - (self.factor - 1)
        return 1 / _wavelengths(theta * growth ** (width / (width - 2)), width), 1.0


@dataclass(frozen=True, slots=True)
class Doubling:
    """A larger theta with every doubling of the original length, up to the longest sequence, or to those of the training if they are
    longer; beyond these, longer vectors."""

    original: int
    trained: int

    def frequencies(self, theta: float, width: int, max_model_len: int) -> tuple[Tensor, float]:
        length = max(max_model_len, self.trained)
        growth = max(2 ** math.ceil(math.log2(length / self.original) + 1) - 1, 1)
        found = 1 / _wavelengths(theta * growth ** (width / (width - 2)), width)
        return found, 0.1 * math.log(length / self.trained) + 1.0


@dataclass(frozen=True, slots=True)
class Yarn:
    """Slow pairs are interpolated, fast ones kept, those between mixed.  https://arxiv.org/abs/2309.00071"""

    factor: float
    original: int
    attention_factor: float
    beta_fast: float = 32.0
    """Pairs that turn more often than this over the original length are kept."""
    beta_slow: float = 1.0
    """Pairs that turn less often than this are interpolated."""
    truncate: bool = True
    """Widen the range between to whole pairs."""

    def frequencies(self, theta: float, width: int, max_model_len: int) -> tuple[Tensor, float]:
        low, high = (self._pair_of(turns, theta, width) for turns in (self.beta_fast, self.beta_slow))
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, width - 1)
        ramp = (torch.arange((width + 1) // 2).float() - low) / max(high - low, 0.001)
        interpolated = ramp.clamp(0, 1)
        wavelengths = _wavelengths(theta, width)
        mixed = interpolated / (self.factor * wavelengths) + (1 - interpolated) / wavelengths
        return mixed, self.attention_factor

    def _pair_of(self, turns: float, theta: float, width: int) -> float:
        """Return the (fractional) index of the pair that makes so many turns over the original length."""
        return width * math.log(self.original / (turns * 2 * math.pi)) / (2 * math.log(theta))


@dataclass(frozen=True, slots=True)
class LongRope:
    """A divisor per pair, one set for the original length and one beyond it.  https://arxiv.org/abs/2402.13753"""

    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    original: int
    attention_factors: tuple[float, float]
    """Beside the first set, and beside the second"""

    def frequencies(self, theta: float, width: int, max_model_len: int) -> tuple[Tensor, float]:
        is_long = max_model_len > self.original
        divisors = torch.tensor(self.long_factor if is_long else self.short_factor)
        return 1 / (divisors * _wavelengths(theta, width)), self.attention_factors[is_long]


@dataclass(frozen=True, slots=True)
class Llama3:
    """Pairs are interpolated, mixed or kept by how often they turn over the original length."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original: int

    def frequencies(self, theta: float, width: int, max_model_len: int) -> tuple[Tensor, float]:
        plain = 1 / _wavelengths(theta, width)
        turns = self.original * plain / (2 * math.pi)
        kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept = kept.clamp(0, 1)
        return (1 - kept) * plain / self.factor + kept * plain, 1.0
