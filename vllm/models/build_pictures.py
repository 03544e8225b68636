"""From specs to the modules of layers that attend to pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from vllm.errors import ConfigError
from vllm.kv_cache.spec import Cross
from vllm.layers.linear import Part
from vllm.layers.pictures import MARKS, Gate, PictureAttention, PictureBlock, Sight
from vllm.models.spec import AttentionSpec, LayerSpec

if TYPE_CHECKING:
    from vllm.models.build import Builder

_FEWEST, _TOKENS_EACH = 2, 4096
"""How many pictures the memory is planned for, of a sequence: that many, or one for so many tokens"""


def build_picture_block(builder: Builder, index: int, layer: LayerSpec) -> PictureBlock:
    """Make a layer that attends to pictures.  Raises ConfigError where it can't be shared."""
    if builder.placement.group.size > 1:
        raise ConfigError("layers that attend to pictures can't be shared; use tensor_parallel_size=1")
    assert layer.cross is not None and layer.ffn is not None, "it attends, and has a feed-forward"
    norm1, norm2 = (builder.norm(builder.spec.width, builder.name(role, index)) for role in ("norm1", "norm2"))
    gate1, gate2 = (Gate(builder.name(role, index), builder.placement) for role in ("cross_gate", "ffn_gate"))
    return PictureBlock(
        _attention(builder, index, layer.cross), builder.ffn(index, layer.ffn), (norm1, norm2), (gate1, gate2)
    )


def _attention(builder: Builder, index: int, cross: AttentionSpec) -> PictureAttention:
    spec, name = builder.spec, builder.name
    rows, kv_rows = cross.heads * cross.head_dim, cross.kv_heads * cross.head_dim
    key_value = [Part(name("cross_k", index), kv_rows), Part(name("cross_v", index), kv_rows)]
    norms: tuple[nn.Module, nn.Module] = (
        builder.norm(cross.head_dim, name("cross_q_norm", index)),
        builder.norm(cross.head_dim, name("cross_k_norm", index)),
    )
    size = spec.picture_states * max(_FEWEST, builder.max_model_len // _TOKENS_EACH)
    return PictureAttention(
        builder.next_cache(),
        Cross(cross.kv_heads, cross.head_dim + MARKS, cross.head_dim, size),
        (
            builder.linear(spec.width, [Part(name("cross_q", index), rows)], cross.qkv_bias),
            builder.linear(spec.width, key_value, cross.qkv_bias),
            builder.linear(rows, [Part(name("cross_o", index), spec.width)], cross.out_bias),
        ),
        norms,
        builder.once(Sight, "sight"),
        cross.scale,
    )
