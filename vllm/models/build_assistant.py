"""From the spec of a block that helps layers to modules; a part of `build`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from vllm.layers.assistant import Adapted, AdaptedGate, Assisted
from vllm.layers.linear import Linear, Part
from vllm.layers.mlp import Mlp
from vllm.models.build_attention import build_attention, qkv_parts
from vllm.models.spec import AssistantSpec, LayerSpec

if TYPE_CHECKING:
    from vllm.models.build import Builder


def build_assisted(builder: Builder, index: int, layer: LayerSpec, assistant: AssistantSpec) -> Assisted:
    """Make a layer that is helped; what it shares with others is made once."""
    assert builder.kept is not None and layer.mixer is not None
    width, place = builder.spec.width, assistant.place
    attention = build_attention(builder, place, assistant.attention, _qkv(builder, assistant))
    join = builder.linear(width, [Part(builder.name("join", index), width)], False)
    return Assisted(
        builder.kept,
        (attention, _ffn(builder, assistant), join),
        builder.mixer(assistant.mixer_place, layer.mixer),
        (
            builder.norm(2 * width, builder.name("norm1", place)),
            builder.norm(width, builder.name("norm2", place)),
            builder.norm(width, builder.name("norm1", assistant.mixer_place)),
        ),
    )


def _qkv(builder: Builder, assistant: AssistantSpec) -> nn.Module:
    parts, width = qkv_parts(builder, assistant.place, assistant.attention), 2 * builder.spec.width
    shared = builder.linear(width, parts, assistant.attention.qkv_bias)
    if not assistant.adapts_attention:
        return shared
    return Adapted(
        shared, *_narrow(builder, assistant, width, dict(zip("qkv", (part.rows for part in parts), strict=True)))
    )


def _ffn(builder: Builder, assistant: AssistantSpec) -> Mlp:
    mlp, place = assistant.mlp, assistant.place
    builder.check_activation(mlp.activation)
    shared = builder.linear(builder.spec.width, builder.up_parts(place, mlp), mlp.up_bias)
    down, (up,) = _narrow(builder, assistant, builder.spec.width, {"gate_up": 2 * mlp.width})
    leave = builder.linear(mlp.width, [builder.branch_end("down", place)], mlp.down_bias)
    return Mlp(AdaptedGate(shared, down, up, mlp.activation), leave)


def _narrow(
    builder: Builder, assistant: AssistantSpec, width: int, roles: dict[str, int]
) -> tuple[Linear, list[Linear]]:
    """Make the narrow matrices of a use beside those of `roles`, which have so many rows."""

    def part(role: str, rows: int) -> Part:
        return Part(builder.name(role, assistant.place, assistant.use), rows)

    down = builder.linear(width, [part(f"{role}_down", assistant.rank) for role in roles], False)
    return down, [builder.linear(assistant.rank, [part(f"{role}_up", rows)], False) for role, rows in roles.items()]
