"""Encoders with decoders: transformers' own module, one request at a time.

    encoder(a's source) ─▶ kept ─▶ module(a's tokens, on top of what the decoder knows of both) ─▶ [T, V]

A sequence's source, its tokens or the features of a sound, is encoded once, when its first token is computed; a fork and a
preempted sequence encode again.  As many sequences run at a time as there is memory for what is kept of each.  Weights are
read by transformers.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vllm.errors import ConfigError
from vllm.layers.embedding import Head
from vllm.layers.placement import Placement
from vllm.layers.step import Step, StepRow
from vllm.layers.transformer import Transformer
from vllm.logging import get_logger
from vllm.models.fallback_decoder import GivenLogits, load_module
from vllm.models.foreign_cache import Growth, measure_growth
from vllm.models.registry import Architecture, refuse_quantized
from vllm.ops.memory import tensor_of

logger = get_logger(__name__)


@dataclass(slots=True)
class _Known:
    """What is remembered of a sequence."""

    source: Any
    """What the encoder made"""
    cache: Any
    ids: Tensor
    """[n] the decoder's tokens so far"""


class ForeignSeq2Seq(nn.Module):
    """A module of transformers that gives each token of a decoder logits.  -> [T, V]"""

    def __init__(self, module: Any, vocab_size: int) -> None:
        super().__init__()
        self.module = module
        self.num_logits = vocab_size
        takes = inspect.signature(module.forward).parameters
        self._cache_name = "cache" if "cache" in takes else "past_key_values"
        self._known: dict[int, _Known] = {}
        self._growth: tuple[Growth, ...] = ()
        self._source_growth: tuple[Growth, ...] = ()

    @torch.inference_mode()
    def sequence_bytes(self, num_tokens: int) -> int:
        """Return the bytes that it keeps of a sequence of so many tokens and the longest source there is."""
        if not self._growth:
            self._growth = measure_growth(lambda count: self._filled(count).cache.self_attention_cache)
            self._source_growth = measure_growth(self._filled_source)
        config = self.module.config.get_text_config()
        lengths = (getattr(config, name, None) for name in ("max_source_positions", "max_position_embeddings"))
        longest = next((length for length in lengths if length), num_tokens)
        kept = sum(part.num_bytes(num_tokens) for part in self._growth)
        return 8 * num_tokens + kept + sum(part.num_bytes(longest) for part in self._source_growth)

    def _filled_source(self, num_tokens: int) -> list[Any]:
        known = self._filled(num_tokens)
        return [known.source.last_hidden_state, known.cache.cross_attention_cache]

    def _filled(self, num_tokens: int) -> _Known:
        """Return what is kept of a sequence of so many tokens, and as many of a source that says nothing."""
        from transformers.modeling_outputs import BaseModelOutput

        parameter = next(self.module.parameters())
        width = self.module.config.get_text_config().hidden_size
        source = BaseModelOutput(
            last_hidden_state=torch.zeros(1, num_tokens, width, dtype=parameter.dtype, device=parameter.device)
        )
        ids = torch.zeros(num_tokens, dtype=torch.int64, device=parameter.device)
        known = _Known(source, self._new_cache(), ids)
        self._advance(known, ids)
        return known

    def forward(self, step: Step) -> Tensor:
        for slot in self._known.keys() - step.rows.living():
            del self._known[slot]
        device = step.token_ids.device
        logits = torch.empty(len(step.token_ids), self.num_logits, dtype=torch.float32, device=device)
        for row in step.rows.each():
            ids = step.token_ids[row.first : row.first + row.count]
            if row.start == 0:
                self._known[row.slot] = _Known(self._encode(row, device), self._new_cache(), ids[:0])
            known = self._known[row.slot]
            known.ids = torch.cat((known.ids, ids))
            logits[row.first : row.first + row.count] = self._advance(known, ids)[:, : self.num_logits]
        return logits

    def _advance(self, known: _Known, ids: Tensor) -> Tensor:
        """Return the logits of a sequence's next tokens.  -> [n, V]"""
        options = {self._cache_name: known.cache, "use_cache": True}
        found: Tensor = self.module(encoder_outputs=known.source, decoder_input_ids=ids[None], **options).logits
        return found[0]

    def _encode(self, row: StepRow, device: torch.device) -> Any:
        encoder = self.module.get_encoder()
        features = {name: tensor_of(array).to(device) for name, array in row.media[0].features.items()}
        if "token_ids" in features:
            ids = features["token_ids"][None]
            return encoder(input_ids=ids, attention_mask=torch.ones_like(ids), return_dict=True)
        takes = inspect.signature(encoder.forward).parameters
        given = {
            name: value.to(self.module.dtype) if value.is_floating_point() else value
            for name, value in features.items()
            if name in takes
        }
        return encoder(**given, return_dict=True)

    def _new_cache(self) -> Any:
        from transformers import DynamicCache, EncoderDecoderCache

        return EncoderDecoderCache(DynamicCache(), DynamicCache())


def build_foreign_seq2seq(
    architecture: Architecture, config: Any, placement: Placement, folder: Path | None
) -> Transformer:
    """Make an encoder with a decoder of transformers' modules, with the weights of `folder`, or random ones.

    Raises ModelError if transformers can't, ConfigError for what can't be done with its modules.
    """
    if placement.format is not None:
        raise ConfigError(f"quantization={placement.format!r} can't be used with {architecture.name}; leave it out")
    if placement.group.size > 1:
        raise ConfigError(f"{architecture.name} can't be shared among processes; use tensor_parallel_size=1")
    refuse_quantized(architecture, config)
    module = load_module(architecture, config, placement, folder)
    logger.info("%s is computed by transformers' module, one request at a time", architecture.name)
    entry = ForeignSeq2Seq(module, config.get_text_config().vocab_size)
    return Transformer(
        entry, [], nn.Identity(), Head(nn.Identity(), GivenLogits(), 0.0), ignored_names=("*",), base_prefix=""
    )
