"""Decoders that have no family here: transformers' own module.  Most are given all rows of a step at once and attend by our
kernels (`fallback_packed`).  What can't be done so has its own cache, and is computed one request at a time:

    step: a a a b c  ──▶  module(a a a, cache of a), module(b, cache of b), module(c, cache of c)  ──▶  [T, V]

It is right before it is fast: requests come, go and are cut into chunks as with any model, but their rows are not computed
together and no prefix is shared.  As many sequences run at a time as there is memory for their caches.  Weights are read by
transformers too, which knows how its modules' names differ from those of checkpoints.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from vllm.errors import ConfigError, ModelError
from vllm.layers.embedding import Head
from vllm.layers.placement import Placement
from vllm.layers.step import Step, StepRow
from vllm.layers.transformer import Transformer
from vllm.logging import get_logger
from vllm.models.fallback_packed import CACHES, PackedDecoder, Unfit
from vllm.models.foreign_cache import Growth, measure_growth
from vllm.models.foreign_names import PACKED, WHOLE_PROMPTS, WITHOUT_CACHE
from vllm.models.registry import Architecture, refuse_quantized
from vllm.ops.memory import tensor_of

logger = get_logger(__name__)

_LASTING = ("cross_attention_mask",)
"""What processors make that has a row for each token, and that later tokens need too: as the last one's."""


class ForeignDecoder(nn.Module):
    """A module of transformers that gives each token of a request logits.  -> [T, V]"""

    def __init__(
        self, module: Any, vocab_size: int, *, whole_prompts: bool, has_cache: bool, sees: bool = False
    ) -> None:
        """`whole_prompts`: it can't take several tokens on top of a cache, so a prompt is computed when all of it is there, and
        what follows token by token.  Without a cache everything is computed again for each token.  `sees`: it takes media,
        with whole prompts, and finds the positions of tokens itself."""
        super().__init__()
        self.module = module
        self.num_logits = vocab_size
        takes = inspect.signature(module.forward).parameters
        self.whole_prompts = whole_prompts
        self._cache_name = next((name for name in CACHES if name in takes), None) if has_cache else None
        self._takes = takes
        self._takes_positions = "position_ids" in takes and not sees
        self._takes_last = "logits_to_keep" in takes
        self._takes_use = "use_cache" in takes
        self._known: dict[int, _Known] = {}
        self._growth: tuple[Growth, ...] | None = None

    @torch.inference_mode()
    def sequence_bytes(self, num_tokens: int) -> int:
        """Return the bytes that it keeps of a sequence of so many tokens."""
        if self._growth is None:
            self._growth = () if self._cache_name is None else measure_growth(self._filled)
        return 8 * num_tokens + sum(part.num_bytes(num_tokens) for part in self._growth)  # 8: a token's id

    def _filled(self, num_tokens: int) -> Any:
        """Return a cache with so many tokens, of which the last came alone: until then windows hold more."""
        cache = self._new_cache()
        ids = torch.zeros(num_tokens, dtype=torch.int64, device=next(self.module.parameters()).device)
        self._compute(ids[1:], cache, 0, whole=False)
        self._compute(ids[:1], cache, num_tokens - 1, whole=False)
        return cache

    def forward(self, step: Step) -> Tensor:
        for slot in self._known.keys() - step.rows.living():
            del self._known[slot]
        device = step.token_ids.device
        logits = torch.empty(len(step.token_ids), self.num_logits, dtype=torch.float32, device=device)
        for row in step.rows.each():
            if row.start == 0:
                features = {name: value for name, value in self._features(row, device).items() if name in self._takes}
                self._known[row.slot] = _Known(step.token_ids[:0], self._new_cache(), features)
            ids = step.token_ids[row.first : row.first + row.count]
            found = self._advance(self._known[row.slot], ids, row)
            end = row.first + row.count
            logits[end - len(found) : end] = found[:, : self.num_logits]
        return logits

    def _advance(self, known: _Known, ids: Tensor, row: StepRow) -> Tensor:
        """Take a row's tokens; return the logits of all, of the last, or of none where nobody waits for them.  -> [n, V]"""
        known.ids = torch.cat((known.ids, ids))
        if self._cache_name is None:
            return self._compute(known.ids, None, 0, whole=True)[-row.count :]
        if not self.whole_prompts:
            return self._compute(ids, known.cache, row.start, row.wants_all)
        if row.start + row.count < row.num_prompt:
            return (
                self._compute(known.ids, self._new_cache(), 0, True)[-row.count :] if row.wants_all else ids[:0, None]
            )
        found = []
        if row.start < row.num_prompt:
            if hasattr(self._body, "rope_deltas"):
                self._body.rope_deltas = None  # another prompt's
            whole = self._compute(known.ids[: row.num_prompt], known.cache, 0, row.wants_all, known.features)
            known.shift = getattr(self._body, "rope_deltas", None)
            found.append(whole[-(row.num_prompt - row.start) :])
        lasting = {name: known.features[name][:, -1:] for name in _LASTING if name in known.features}
        for position in range(max(row.start, row.num_prompt), row.start + row.count):
            if hasattr(self._body, "rope_deltas"):
                self._body.rope_deltas = known.shift
            found.append(self._compute(known.ids[position : position + 1], known.cache, position, True, lasting))
        return torch.cat(found)

    def _compute(
        self, ids: Tensor, cache: Any, start: int, whole: bool, features: Mapping[str, Any] = MappingProxyType({})
    ) -> Tensor:
        """Return the logits of tokens from position `start` on, or of the last one alone.  -> [n, V]"""
        options: dict[str, Any] = {**features, **({} if self._cache_name is None else {self._cache_name: cache})}
        if self._takes_use:
            options["use_cache"] = self._cache_name is not None
        if self._takes_positions:
            options["position_ids"] = torch.arange(start, start + len(ids), device=ids.device)[None]
        if self._takes_last and not whole:
            options["logits_to_keep"] = 1
        found: Tensor = self.module(input_ids=ids[None], **options).logits
        return found[0]

    @property
    def _body(self) -> Any:
        """What keeps where the last prompt's positions ended, in modules that count them in space."""
        return getattr(self.module, "model", self.module)

    def _features(self, row: StepRow, device: torch.device) -> dict[str, Tensor]:
        """Return what a processor made of a prompt's media."""
        found = {}
        for one in row.media:
            for name, array in one.features.items():
                tensor = tensor_of(array).to(device)
                found[name] = tensor.to(self.module.dtype) if tensor.is_floating_point() else tensor
        return found

    def _new_cache(self) -> Any:
        from transformers import Cache, DynamicCache

        if self._cache_name is None:
            return None
        beside = vars(sys.modules[type(self.module).__module__])
        own: list[Any] = [
            kind
            for kind in beside.values()
            if isinstance(kind, type) and issubclass(kind, Cache) and kind.__module__ == type(self.module).__module__
        ]
        config = self.module.config.get_text_config()
        if not own:
            return DynamicCache(config=config)
        return own[0](config=config) if "config" in inspect.signature(own[0]).parameters else own[0]()


@dataclass(slots=True)
class _Known:
    """What is remembered of a sequence."""

    ids: Tensor
    """[n] its tokens so far"""
    cache: Any
    features: dict[str, Tensor]
    """Of its media"""
    shift: Any = None
    """What the module adds to the index of a token behind the prompt, if it counts positions in space"""


class GivenLogits(nn.Module):
    """Hands on logits as they are.  [R, V] -> [R, V]"""

    def forward(self, logits: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return logits.clone()  # whoever gets them may change them


def build_foreign_decoder(
    architecture: Architecture, config: Any, placement: Placement, max_model_len: int, folder: Path | None
) -> Transformer:
    """Make a decoder of transformers' modules, with the weights of `folder`, or without it with random ones.

    Raises ModelError if transformers can't, ConfigError for what can't be done with its modules.
    """
    if placement.format is not None:
        raise ConfigError(f"quantization={placement.format!r} can't be used with {architecture.name}; leave it out")
    if placement.group.size > 1:
        raise ConfigError(f"{architecture.name} can't be shared among processes; use tensor_parallel_size=1")
    refuse_quantized(architecture, config)
    module = load_module(architecture, config, placement, folder)
    entry = _packed(architecture, module, placement, max_model_len) or ForeignDecoder(
        module,
        config.get_text_config().vocab_size,
        whole_prompts=architecture.sees or architecture.name in WHOLE_PROMPTS,
        has_cache=architecture.name not in WITHOUT_CACHE,
        sees=architecture.sees,
    )
    head = Head(nn.Identity(), GivenLogits(), 0.0)
    return Transformer(entry, [], nn.Identity(), head, ignored_names=("*",), base_prefix="")


def _packed(architecture: Architecture, module: Any, placement: Placement, max_model_len: int) -> PackedDecoder | None:
    """Return a decoder that takes all rows of a step at once, where the module can; say which way it goes."""
    reason = ""
    if architecture.name in PACKED:
        try:
            entry = PackedDecoder(module, module.config.get_text_config().vocab_size, placement, max_model_len)
        except Unfit as error:
            reason = f", since {error}"
        else:
            logger.info("%s is computed by transformers' module over the paged cache", architecture.name)
            return entry
    logger.info("%s is computed by transformers' module, one request at a time%s", architecture.name, reason)
    return None


def load_module(architecture: Architecture, config: Any, placement: Placement, folder: Path | None) -> Any:
    """Load a model with transformers; without a folder its weights are random.  Raises ModelError."""
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
            given = config if isinstance(config, transformers.PreTrainedConfig) else None  # else it reads its own
            module, found = kind.from_pretrained(
                folder, config=given, dtype=placement.dtype, output_loading_info=True, **options
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
