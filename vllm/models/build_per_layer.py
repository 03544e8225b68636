"""From the spec of embeddings that each layer has to modules; a part of `build`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from vllm.layers.embedding import Embedding
from vllm.layers.linear import Part
from vllm.layers.per_layer import PerLayerInput, Reader
from vllm.models.spec import PerLayerSpec

if TYPE_CHECKING:
    from vllm.models.build import Builder


def build_per_layer_input(builder: Builder, entry: nn.Module, per_layer: PerLayerSpec) -> PerLayerInput:
    """Make the entry that has something for each layer too."""
    names, all_layers = builder.spec.names, per_layer.width * len(builder.spec.layers)
    return PerLayerInput(
        entry,
        Embedding(per_layer.vocab_size, all_layers, names["per_layer_embed"], builder.placement),
        builder.linear(builder.spec.width, [Part(names["per_layer_project"], all_layers)], False),
        builder.norm(per_layer.width, names["per_layer_norm"]),
        per_layer.width,
    )


def build_reader(builder: Builder, index: int, per_layer: PerLayerSpec) -> Reader:
    """Make what a layer reads its embeddings with."""
    assert builder.per_layer is not None
    builder.check_activation(per_layer.activation)
    width = builder.spec.width
    gate = builder.linear(width, [Part(builder.name("per_layer_gate", index), per_layer.width)], False)
    out = builder.linear(per_layer.width, [Part(builder.name("per_layer_out", index), width)], False)
    norm = builder.norm(width, builder.name("norm_per_layer", index))
    return Reader(builder.per_layer, index, (gate, out), norm, per_layer.activation)
