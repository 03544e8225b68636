"""Models of transformers that embed texts and pictures, each by a tower of its own: clip and its like, prompt by prompt.

a text     ──▶  get_text_features   ──▶  [D]
a picture  ──▶  get_image_features  ──▶  [D]
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vllm.errors import ModelError
from vllm.layers.placement import Placement
from vllm.layers.pooler import Pooler
from vllm.layers.step import Step, StepRow
from vllm.layers.transformer import Transformer
from vllm.messages import Media
from vllm.models.fallback import blank_module
from vllm.models.media.reading import taken
from vllm.models.registry import Architecture
from vllm.models.tasks import pair_width
from vllm.ops.memory import tensor_of
from vllm.pooling_params import Pooling
from vllm.weights import TensorPlace, Window


class TwoTowers(nn.Module):
    """A module of transformers that makes one vector of a prompt; each of its tokens gets it.  -> [T, D]"""

    def __init__(self, module: Any, length: int | None, filling: tuple[int, bool]) -> None:
        """`length`: texts are filled up to so many tokens, as the model is used to; None: they are not.  `filling`: the token that
        does that, and whether on the left."""
        super().__init__()
        self.module = module
        self.length = length
        self.pad_token_id, self.on_left = filling

    def forward(self, step: Step) -> Tensor:
        return torch.cat([self._vector(row, step).expand(row.count, -1) for row in step.rows.each()])

    def _vector(self, row: StepRow, step: Step) -> Tensor:
        """Return what a prompt comes to.  -> [1, D]"""
        if row.media:
            found = self.module.get_image_features(**self._features(row.media[0], step.token_ids.device))
        else:
            ids = step.token_ids[row.first : row.first + row.count]
            if self.length is not None:
                missing = self.length - len(ids)
                ids = nn.functional.pad(ids, (missing, 0) if self.on_left else (0, missing), value=self.pad_token_id)
            found = self.module.get_text_features(input_ids=ids[None])
        vector: Tensor = getattr(found, "pooler_output", found)
        return vector

    def _features(self, media: Media, device: torch.device) -> dict[str, Tensor]:
        found = {name: tensor_of(array).to(device) for name, array in media.features.items()}
        dtype = self.module.dtype
        found = {name: value.to(dtype) if value.is_floating_point() else value for name, value in found.items()}
        return taken(self.module.get_image_features, found)

    def windows(self) -> Iterator[Window]:
        for name, tensor in self.module.state_dict(keep_vars=True).items():
            yield Window(name, TensorPlace(tensor))


def build_pair(
    architecture: Architecture, config: Any, placement: Placement, pooling: Pooling | None, folder: Path | None
) -> Transformer:
    """Make a model of two towers.  Raises ModelError if transformers can't, ConfigError for what it can't."""
    import transformers

    if pooling is None:
        raise ModelError(f"{architecture.name}: its towers can't generate; it pools")
    kind: Any = getattr(transformers, architecture.name)
    module = blank_module(architecture, config, placement, kind._from_config)
    text = config.get_text_config()
    length = text.max_position_embeddings if architecture.base.startswith("Siglip") else None
    return Transformer(
        TwoTowers(module, length, _filling(folder, text)),
        [],
        nn.Identity(),
        Pooler(pooling, [], pair_width(config)),
        ignored_names=("*position_ids",),
        base_prefix="",
    )


def _filling(folder: Path | None, text: Any) -> tuple[int, bool]:
    """Return the token that texts are filled up with, and whether on the left: as the tokenizer says, which configs don't know."""
    from tokenizers import Tokenizer

    place = folder or Path()
    try:
        said = json.loads((place / "tokenizer_config.json").read_bytes())
        word = said["pad_token"]
        word = word["content"] if isinstance(word, dict) else word
        found = Tokenizer.from_file(str(place / "tokenizer.json")).token_to_id(word)
    except Exception:  # a folder without a tokenizer, or one that is no such file
        said, found = {}, None
    side = said.get("padding_side") or ("left" if text.model_type.startswith("siglip2") else "right")
    return int(found if found is not None else text.pad_token_id or 0), side == "left"
