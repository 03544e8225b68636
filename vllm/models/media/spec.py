"""What a model that sees or hears is, beside the decoder that reads what it saw: an adapter is one of these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from vllm.messages import Modality


@dataclass(frozen=True, slots=True)
class MediaSpec:
    """How the parts of a model that takes media are joined."""

    placeholders: Mapping[Modality, str] = field(default_factory=lambda: {"image": "image_token_id"})
    """Modality → field of the config with the token that stands in its place"""
    positions: Literal["plain", "spatial"] = "plain"
    """spatial: a token has three positions, in time, height and width, which share out the pairs of its rotary embedding"""
    sees: Literal["past", "medium"] = "past"
    """medium: tokens of one medium also see those behind them, as far as that medium goes"""
    processor: str = ""
    """Where what prepares media is, as "package.module:name": a function from a model's folder to an `OwnProcessor`; none:
    transformers' processor of the model"""
    tower: str = ""
    """Where a module is that is made of the config, as "package.module:name"; its weights are those of the checkpoint whose names
    begin with "tower."  None: transformers' model"""
    text: str = ""
    """Which function of `texts` makes a decoder of the text part's config; none: the family of its model type"""
