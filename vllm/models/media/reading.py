"""A module of transformers that is run as far as its decoder: what that would read in a medium's places is what the tower made.

ids  0 ▢ ▢ ▢, pixel_values   ──▶  module  ──▶  t v v v  ──▶  [ in the decoder's place ]  ──▶  v v v
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vllm.errors import ModelError


def read(module: Any, ids: Tensor, features: Mapping[str, Tensor]) -> Tensor:
    """Return what the decoder of a module would read in the places of a medium, whose tokens are `ids`.  [n] -> [n, D]"""
    ids = torch.cat((torch.zeros_like(ids[:1]), ids))[None]  # modules take a single token for a step of decoding
    given = {"attention_mask": torch.ones_like(ids), "use_cache": False, **features}
    try:
        module(input_ids=ids, **taken(module.forward, given))
    except _Read as found:
        return found.embeddings[0, 1:]
    raise ModelError(f"{type(module).__name__} of transformers did not come to its decoder")


def taken(function: Callable[..., Any], features: Mapping[str, Any]) -> dict[str, Any]:
    """Return those features that a function has parameters for."""
    takes = inspect.signature(function).parameters
    return {name: value for name, value in features.items() if name in takes}


def replace_text(module: Any, instead: Any, norm: str = "") -> None:
    """Put something in the place of a module's decoder, and nothing in that of its head.

    `norm`: the name of its last norm, where the decoder has towers in it: then that is replaced, and the tokens' embeddings.
    """
    if norm:
        module.set_submodule(norm, instead)
        module.set_input_embeddings(instead.get_input_embeddings())
    decoder = module.get_decoder() if hasattr(module, "get_decoder") and not norm else None
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if child is decoder:
                setattr(parent, name, instead)
            elif parent is module and name == "lm_head":
                setattr(parent, name, nn.Identity())


class _Read(Exception):
    """What a decoder was given to read."""

    def __init__(self, embeddings: Tensor) -> None:
        super().__init__()
        self.embeddings = embeddings


class Reader(nn.Module):
    """In the place of a decoder: hands out what it is given to read."""

    def __init__(self, texts: nn.Module) -> None:
        """`texts` makes embeddings of tokens."""
        super().__init__()
        self.texts = texts

    def get_input_embeddings(self) -> nn.Module:
        """Return what makes embeddings of tokens."""
        return self.texts

    def forward(self, x: Tensor | None = None, *_: Any, inputs_embeds: Tensor | None = None, **__: Any) -> None:
        found = x if inputs_embeds is None else inputs_embeds
        assert found is not None, "a decoder is given embeddings"
        raise _Read(found)


class Vocabulary(nn.Module):
    """In the place of a decoder whose embeddings of tokens a tower reads itself: hands out those of ours."""

    def __init__(self, entry: Any) -> None:
        """`entry` has the table of tokens, whose weights may come later."""
        super().__init__()
        self.table = _Table(entry.tokens)

    def get_input_embeddings(self) -> nn.Module:
        """Return what makes embeddings of tokens."""
        return self.table


class _Table(nn.Module):
    """A table of another model.  [1, n] -> [1, n, D]"""

    def __init__(self, tokens: nn.Module) -> None:
        super().__init__()
        self._tokens = [tokens]  # not a module of this one

    def forward(self, ids: Tensor) -> Tensor:
        found: Tensor = self._tokens[0](ids.flatten().long())
        return found.unflatten(0, ids.shape)


class Zeros(nn.Module):
    """In the place of a text's embeddings.  [1, n] -> [1, n, D]"""

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.row = nn.Buffer(torch.zeros(width, dtype=dtype), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.row.expand(*ids.shape, -1).clone()
