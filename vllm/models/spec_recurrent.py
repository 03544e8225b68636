"""What recurrent layers are made of, as plain data; a part of `spec`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Scale = tuple[float, float]
"""What a matrix is multiplied with, and what its bias is"""


@dataclass(frozen=True, slots=True)
class MambaSpec:
    """One layer's selective state space."""

    width: int
    """Channels"""
    state: int
    """Elements of each channel's state"""
    kernel: int
    """Of the convolution"""
    rank: int
    """Of the time step's matrix"""
    activation: str
    bias: bool = False
    """Of the projections in and out"""
    conv_bias: bool = True
    norm: Literal["", "plain", "weighted"] = ""
    """Time step and weights are normalised, without or with weights."""
    norm_eps: float = 1e-6
    heads: int = 0
    """Above 0: the channels of each of so many heads fade alike.  Checkpoints have gate and channels head by head then, the
    weights before the time step, a bias of the time steps apart, and norms by their whole names."""


@dataclass(frozen=True, slots=True)
class Mamba2Spec:
    """One layer's selective state space with heads."""

    heads: int
    head_dim: int
    groups: int
    """Of heads that share input and output weights"""
    state: int
    """Each head's state is [head_dim, state]."""
    kernel: int
    """Of the convolution"""
    activation: str
    bias: bool = False
    """Of the projections in and out"""
    conv_bias: bool = True
    norm: Literal["", "gate_first", "norm_first"] = "gate_first"
    """Which comes first where the result is normalised; "": it is gated alone."""
    norm_eps: float = 1e-5
    time_limits: tuple[float, float] = (0.0, float("inf"))
    """What time steps are brought into"""
    scales: tuple[Scale, ...] = ()
    """Of the rows that make gate, channels, input weights, output weights and time steps"""


@dataclass(frozen=True, slots=True)
class ShortConvSpec:
    """One layer's convolution between two gates."""

    kernel: int
    bias: bool = False
    """Of convolution and projections"""


@dataclass(frozen=True, slots=True)
class DeltaNetSpec:
    """One layer's gated delta net."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int
    """Of the convolution"""
    activation: str
    layout: Literal["split", "per_group", "separate"]
    """How a checkpoint stores what a token is made to: q, k and v together and the rest apart; all of it key head by key head,
    with the value heads that it serves, but for what controls the state, which is stored alike; each in a tensor of its
    own, convolutions too."""
    norm_eps: float
    gate: str = "silu"
    """The activation of the gate"""
    strength: float = 1.0
    """What corrections are multiplied with"""
    rank: int = 0
    """Above 0: each element of a key fades by itself, and gate and time steps come by way of something so narrow."""


@dataclass(frozen=True, slots=True)
class LightningSpec:
    """One layer's linear attention."""

    heads: int
    head_dim: int
    activation: str
    """Of q, k and v"""
    rates: tuple[float, ...]
    """Of each head: the logarithm of what is left of its state after a token"""
    norm_eps: float = 1e-6


@dataclass(frozen=True, slots=True)
class NgramSpec:
    """Embeddings of the tokens that end at each, from 2 to `longest` of them."""

    longest: int
    tables: int
    """For each length"""
    rows: int
    """Of the first table, less 1; every further one has 2 more."""
    end: int
    """The token behind which another text begins"""


@dataclass(frozen=True, slots=True)
class LruSpec:
    """One layer's gated linear recurrence."""

    width: int
    """Channels"""
    heads: int
    """Of the products that make gates"""
    kernel: int
    """Of the convolution"""
    activation: str
