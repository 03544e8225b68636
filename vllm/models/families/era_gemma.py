"""Rnj 1: gemma3 whose layers attend within chunks instead of windows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vllm.errors import ModelError
from vllm.models.families.era import known
from vllm.models.families.gemma import gemma3
from vllm.models.spec import LayerSpec, TransformerSpec


def rnj1(config: Any) -> TransformerSpec:
    """Chunks of half a window, to whose tokens those of the next one attend too."""
    config = known(config)
    config.use_bidirectional_attention = getattr(config, "use_bidirectional_attention", False)
    spec, size = gemma3(config), config.sliding_window // 2

    def chunked(index: int, layer: LayerSpec) -> LayerSpec:
        kind = config.layer_types[index]
        if kind not in ("chunked_attention", "full_attention"):
            raise ModelError(f"layer_types has {kind!r}: of rnj 1, chunked_attention and full_attention are supported")
        own = replace(layer.attention, chunk=size, chunks_before=1)
        return replace(layer, mixer=own) if kind == "chunked_attention" else layer

    return replace(spec, layers=tuple(chunked(*numbered) for numbered in enumerate(spec.layers)))
