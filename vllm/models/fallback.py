"""Encoders that have no family here: transformers' own module, or one that comes with the checkpoint, prompt by prompt.

    step: a a a b b c c c c  ──▶  module(a a a), module(b b), module(c c c c)  ──▶  [T, D]

That is right before it is fast.  The module fills its weights from windows like any other, and the head is ours.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vllm.errors import ConfigError, ModelError
from vllm.layers.placement import Placement
from vllm.layers.step import Step
from vllm.layers.transformer import Transformer
from vllm.logging import get_logger
from vllm.models.heads import Body, make_pooler
from vllm.models.registry import Architecture, comes_with, refuse_quantized
from vllm.pooling_params import Pooling
from vllm.weights import TensorPlace, Window

logger = get_logger(__name__)

_IGNORED = (
    "*.inv_freq",
    "*position_ids",
    "*pooler.*",
    "classifier.*",
    "cls.*",
    "lm_head.*",
    "lm_loss.*",
    "*predictions.*",
    "pred_layer.*",
    "qa_outputs.*",
    "sop_classifier.*",
)
"""What checkpoints hold beside the encoder."""


class ForeignEncoder(nn.Module):
    """A module of transformers that gives each token of a prompt a hidden state.  -> [T, D]"""

    def __init__(self, module: Any, num_types: int) -> None:
        """`num_types`: how many types of tokens it knows; below 2 it is not told of any."""
        super().__init__()
        self.module = module
        self.num_types = num_types

    def forward(self, step: Step) -> Tensor:
        starts = (step.positions == 0).nonzero().flatten().tolist()  # a prompt is computed whole, from position 0 on
        ends = [*starts[1:], len(step.positions)]
        rows = [self._states(step, start, end) for start, end in zip(starts, ends, strict=True)]
        return torch.cat(rows)

    def _states(self, step: Step, start: int, end: int) -> Tensor:
        """Return the hidden states of one prompt.  -> [n, D]"""
        ids = step.token_ids[None, start:end]
        options = {}
        if self.num_types > 1:
            options["token_type_ids"] = step.token_types[None, start:end].clamp_max(self.num_types - 1)
        found: Tensor = self.module(input_ids=ids, **options)[0][0]
        return found

    def windows(self) -> Iterator[Window]:
        prefix = f"{self.module.base_model_prefix}."
        for name, parameter in self.module.named_parameters():
            yield Window(prefix + name, TensorPlace(parameter))
        for name, buffer in self.module.named_buffers():
            if name in self.module.state_dict():
                yield Window(prefix + name, TensorPlace(buffer), optional=True)


def build_fallback(
    architecture: Architecture, config: Any, placement: Placement, pooling: Pooling | None, folder: Path | None
) -> Transformer:
    """Make an encoder of transformers' modules.  Raises ModelError if transformers can't, ConfigError for what it can't."""
    import transformers

    if pooling is None:
        raise ModelError(f"{architecture.name}: an encoder can't generate; it pools")
    make = partial(transformers.AutoModel.from_config, trust_remote_code=comes_with(config, "AutoModel"))
    module = blank_module(architecture, config, placement, make)
    if getattr(module, "pooler", None) is not None:
        module.pooler = nn.Identity()  # pooling is the head's; checkpoints may lack its weights
    logger.info("%s is computed by transformers' module, prompt by prompt", architecture.name)
    body = Body(config.hidden_size, f"{module.base_model_prefix}.")
    return Transformer(
        ForeignEncoder(module, _num_types(module, config)),
        [],
        nn.Identity(),
        make_pooler(architecture, config, body, pooling, placement, folder),
        ignored_names=_IGNORED,
        base_prefix=body.prefix,
    )


def blank_module(architecture: Architecture, config: Any, placement: Placement, make: Callable[..., Any]) -> Any:
    """Return what `make` makes of a config, its weights as they come, to be filled from windows.

    Raises ModelError if transformers can't, ConfigError for what its modules can't.
    """
    from transformers.initialization import no_init_weights

    if placement.format is not None:
        raise ConfigError(f"quantization={placement.format!r} can't be used with {architecture.name}; leave it out")
    refuse_quantized(architecture, config)
    try:
        with no_init_weights():
            module = make(config, dtype=placement.dtype)
    except Exception as error:  # each class refuses in its own way
        raise ModelError(f"{architecture.name}: transformers can't build it: {error}") from error
    return module.to(placement.device).eval().requires_grad_(False)


def _num_types(module: Any, config: Any) -> int:
    knows = "token_type_ids" in inspect.signature(module.forward).parameters
    return int(getattr(config, "type_vocab_size", 0) or 0) if knows else 0
