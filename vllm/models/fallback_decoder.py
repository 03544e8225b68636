"""Decoders that have no family here: transformers' own module with its own cache, one request at a time.

    step: a a a b c  ──▶  module(a a a, cache of a), module(b, cache of b), module(c, cache of c)  ──▶  [T, V]

It is right before it is fast: requests come, go and are cut into chunks as with any model, but their rows are not computed
together and no prefix is shared.  Weights are read by transformers too, which knows how its modules' names differ from those
of checkpoints.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vllm.errors import ConfigError, ModelError
from vllm.layers.embedding import Head
from vllm.layers.placement import Placement
from vllm.layers.step import Step
from vllm.layers.transformer import Transformer
from vllm.logging import get_logger
from vllm.models.foreign_names import ONE_BY_ONE
from vllm.models.registry import Architecture, refuse_quantized

logger = get_logger(__name__)

_CACHES = ("past_key_values", "cache", "cache_params")
"""What modules call the cache that they are given."""


class ForeignDecoder(nn.Module):
    """A module of transformers that gives each token of a request logits.  -> [T, V]"""

    remembers = True

    def __init__(self, module: Any, vocab_size: int, one_by_one: bool) -> None:
        """`one_by_one`: the module can't take several tokens on top of a cache."""
        super().__init__()
        self.module = module
        self.vocab_size = vocab_size
        self.one_by_one = one_by_one
        takes = inspect.signature(module.forward).parameters
        self._cache_name = next((name for name in _CACHES if name in takes), _CACHES[0])
        self._takes_positions = "position_ids" in takes
        self._takes_last = "logits_to_keep" in takes
        self._caches: dict[int, Any] = {}

    def forward(self, step: Step) -> Tensor:
        rows = step.rows
        for slot in self._caches.keys() - rows.living():
            del self._caches[slot]
        device = step.token_ids.device
        logits = torch.empty(len(step.token_ids), self.vocab_size, dtype=torch.float32, device=device)
        for slot, first, start, count, whole in rows.each():
            if start == 0:
                self._caches[slot] = self._new_cache()
            size = 1 if self.one_by_one and start > 0 else count
            for begin in range(first, first + count, size):
                found = self._compute(step, self._caches[slot], begin, size, whole)
                logits[begin + size - len(found) : begin + size] = found[:, : self.vocab_size]
        return logits

    def _compute(self, step: Step, cache: Any, first: int, count: int, whole: bool) -> Tensor:
        """Return the logits of a row's tokens, or of the last one alone.  -> [n, V]"""
        options: dict[str, Any] = {self._cache_name: cache}
        if self._takes_positions:
            options["position_ids"] = step.positions[None, first : first + count]
        if self._takes_last and not whole:
            options["logits_to_keep"] = 1
        found: Tensor = self.module(
            input_ids=step.token_ids[None, first : first + count], use_cache=True, **options
        ).logits
        return found[0]

    def _new_cache(self) -> Any:
        from transformers import DynamicCache

        return DynamicCache(config=self.module.config.get_text_config())


class GivenLogits(nn.Module):
    """Hands on logits as they are.  [R, V] -> [R, V]"""

    def forward(self, logits: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return logits.clone()  # whoever gets them may change them


def build_foreign_decoder(
    architecture: Architecture, config: Any, placement: Placement, folder: Path | None
) -> Transformer:
    """Make a decoder of transformers' modules, with the weights of `folder`, or without it with random ones.

    Raises ModelError if transformers can't, ConfigError for what can't be done with its modules.
    """
    if placement.format is not None:
        raise ConfigError(f"quantization={placement.format!r} can't be used with {architecture.name}; leave it out")
    if placement.group.size > 1:
        raise ConfigError(f"{architecture.name} can't be shared among processes; use tensor_parallel_size=1")
    refuse_quantized(architecture, config)
    module = _module(architecture, config, placement, folder)
    logger.info("%s is computed by transformers' module, one request at a time", architecture.name)
    head = Head(nn.Identity(), GivenLogits(), 0.0)
    one_by_one = architecture.name in ONE_BY_ONE
    entry = ForeignDecoder(module, config.get_text_config().vocab_size, one_by_one)
    return Transformer(entry, [], nn.Identity(), head, ignored_names=("*",), base_prefix="")


def _module(architecture: Architecture, config: Any, placement: Placement, folder: Path | None) -> Any:
    import transformers

    remote = type(config).__module__.startswith("transformers_modules")
    known: Any = getattr(transformers, architecture.name, None)
    kind: Any = known or transformers.AutoModelForCausalLM
    options = {"trust_remote_code": True} if remote else {}
    missing: list[str] = []
    try:
        if folder is None:
            make = kind.from_config if known is None else kind._from_config
            module = make(config, dtype=placement.dtype, **options)
        else:
            module, found = kind.from_pretrained(
                folder, config=config, dtype=placement.dtype, output_loading_info=True, **options
            )
            missing = sorted(found["missing_keys"])
    except Exception as error:  # each class refuses in its own way
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{architecture.name}: transformers can't load it: {reason}") from error
    if missing:
        raise ModelError(
            f"{folder}: the checkpoint and its config.json do not fit; {len(missing)} weights of the model are not in it: "
            f"{', '.join(missing[:5])}"
        )
    return module.to(placement.device).eval().requires_grad_(False)
