"""Prompts of models that have an encoder beside their decoder: who reads what, and how the decoder begins."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import msgspec

from vllm.errors import ModelError, RequestError
from vllm.inputs.prompts import Prompt
from vllm.messages import Array, Media


@dataclass(frozen=True, slots=True)
class EncoderRules:
    """How prompts of a model are shared out."""

    reads: Literal["text", "audio"]
    """What its encoder takes"""
    start: tuple[int, ...]
    """The tokens that its decoder begins with"""
    max_len: int | None = None
    """The most tokens that its encoder reads"""
    kept: bool = False
    """What the encoder makes is kept by the engine, and not by a module of transformers"""

    @classmethod
    def of(
        cls, reads: Literal["text", "audio"], config: Any, generation: Mapping[str, Any], *, kept: bool
    ) -> EncoderRules:
        """Raises ModelError for a model that doesn't say how its decoder begins."""

        def value(name: str) -> Any:
            stored = generation.get(name)
            return getattr(config, name, None) if stored is None else stored

        start = value("decoder_start_token_id")
        if not isinstance(start, int):
            raise ModelError("the model's config names no decoder_start_token_id; correct it with hf_overrides")
        forced = value("forced_bos_token_id") if reads == "text" else None
        lengths = [getattr(config, name, None) for name in ("max_source_positions", "max_position_embeddings")]
        longest = next((length for length in lengths if length), None) if reads == "text" else None
        return cls(reads, (start,) if forced is None else (start, forced), longest, kept)

    def text(self, token_ids: list[int]) -> list[Media]:
        """Return a text as the engine takes what an encoder reads."""
        data = array("q", token_ids).tobytes()
        features = {"token_ids": Array("int64", (len(token_ids),), data)}
        return [Media("text", hashlib.sha256(data).digest(), [], features, length=len(token_ids) if self.kept else 0)]

    def sound(self, heard: Media) -> list[Media]:
        """Return a sound, which was prepared for an encoder: two of its frames make a position."""
        if not self.kept:
            return [heard]
        frames = heard.features["input_features"].shape[-1]
        return [msgspec.structs.replace(heard, length=-(-frames // 2))]

    def split(self, prompt: Prompt, where: str) -> tuple[Prompt, Prompt]:
        """Return what the encoder reads and what the decoder begins with.  Raises RequestError for neither."""
        if prompt.encoder is not None:
            encoder, decoder = prompt.encoder, replace(prompt, encoder=None, add_special_tokens=False)
        elif self.reads == "text":
            encoder, decoder = prompt, Prompt(text="", token_ids=[], cache_salt=prompt.cache_salt)
        else:
            encoder, decoder = prompt, replace(prompt, media=(), add_special_tokens=False)
        if self.reads == "audio" and len(encoder.media) != 1:
            raise RequestError(
                f"{where} has {len(encoder.media)} sounds for the model's encoder; give one, as multi_modal_data "
                "{'audio': (samples, rate)}",
                "multi_modal_data",
            )
        if self.reads == "text" and encoder.media:
            raise RequestError(f"{where} has 'multi_modal_data': the model takes text only", "multi_modal_data")
        return encoder, replace(decoder, media=())

    def begun(self, tokens: list[int]) -> list[int]:
        """Return the decoder's tokens, which begin as the model's do."""
        if not tokens:
            return list(self.start)
        # what was said before a sound stands before its start; a text's start may be its end token too, as bart's is
        places = tokens if self.reads == "audio" else tokens[:1]
        return tokens if self.start[0] in places else [self.start[0], *tokens]
