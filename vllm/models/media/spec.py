"""What a model that sees or hears is, beside the decoder that reads what it saw: an adapter is one of these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vllm.messages import Modality, Prompts


@dataclass(frozen=True, slots=True)
class MediaSpec:
    """How the parts of a model that takes media are joined."""

    placeholders: Mapping[Modality, str] = field(default_factory=lambda: {"image": "image_token_id"})
    """Modality → field of the config with the token that stands in its place"""
    positions: Literal["plain", "spatial"] = "plain"
    """spatial: a token has three positions, in time, height and width, which share out the pairs of its rotary embedding"""
    beside: str = ""
    """Field of the config with further tokens of a medium that are the tower's to embed, such as the marks of its rows"""
    prompts: Prompts = "pieces"
    """How transformers' processor fills prompts in"""
    reads_text: bool = False
    """The tower reads a prompt's text too"""
    notices: str = ""
    """A feature of pictures that sounds are heard differently with, if their prompt has pictures: the tower gets it then, empty"""
    options: Mapping[str, Any] = field(default_factory=dict)
    """For transformers' processor, unless the user says otherwise"""
    reads: Literal["method", "vocabulary", "states", "forward", "sum"] = "method"
    """How transformers' module is asked for embeddings: by its `get_image_features` or the like; in the same way, where that gives
    embeddings of the text's own tokens; by its vision model and projector, where layers of the text attend to the states that
    these give; or, where it has none or none that gives all of them, it is run as far as its decoder, and they are what that
    would read; so it is, on top of embeddings of our own, where they are sums of those and of what the tower made"""
    attention: str = ""
    """Which of transformers' attentions the tower has; none: the one it prefers"""
    decoder: str = ""
    """What ends the module's decoder, if that is no part of it apart: the name of its last norm"""
    sees: Literal["past", "medium", "media", "prompt", "all"] = "past"
    """Tokens also see those behind them.  medium: those of one medium, as far as that goes; media: those of a prompt's media, with what the
    processor writes around them; prompt: all of a prompt that has media; all: of any prompt, and so it can't generate"""
    processor: str = ""
    """Where what prepares media is, as "package.module:name": a function from a model's folder to an `OwnProcessor`; none:
    transformers' processor of the model"""
    tower: str = ""
    """Where a module is that is made of the config, as "package.module:name"; its weights are those of the checkpoint whose names
    begin with "tower."  None: transformers' model"""
    module: str = ""
    """transformers' class with the tower, where it is called otherwise than the architecture"""
    layout: str = ""
    """Which function of `layouts` gives a checkpoint's tensors transformers' names; none: transformers reads them"""
    text: str = ""
    """Which function of `texts` makes a decoder of the text part's config; none: the family of its model type"""

    def tokens(self, config: Any) -> dict[Modality, int]:
        """Return the tokens that embeddings of media have in prompts, by modality."""
        found = {}
        for modality, name in self.placeholders.items():
            part, _, last = name.rpartition(".")
            owner = getattr(config, part) if part else config
            token = getattr(owner, last, getattr(owner, last.replace("_token_id", "_token_index"), None))
            if token is not None:
                found[modality] = token
        return found

    def states(self, config: Any) -> int:
        """Return how many states layers attend to of a picture; 0 where they read embeddings among those of tokens."""
        if self.reads != "states":
            return 0
        vision = config.vision_config
        return int(vision.max_num_tiles * ((vision.image_size // vision.patch_size) ** 2 + 1))

    def tokens_beside(self, config: Any) -> tuple[int, ...]:
        """Return the further tokens of media that the tower embeds."""
        return tuple(getattr(config, self.beside)) if self.beside else ()
