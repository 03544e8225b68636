"""From the spec of several hidden states side by side to modules; a part of `build`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from vllm.layers.altup import AltUp, Lanes, LanesInput, LanesOutput
from vllm.layers.linear import Linear, Part
from vllm.layers.recurrent import Exact
from vllm.models.build_per_layer import build_reader
from vllm.models.spec import LanesSpec, LayerSpec

if TYPE_CHECKING:
    from vllm.models.build import Builder


def build_lanes_input(builder: Builder, entry: nn.Module, lanes: LanesSpec) -> LanesInput:
    """Make the entry of all states."""
    return LanesInput(entry, _between(builder, "lane_in", lanes))


def build_lanes_output(builder: Builder, norm: nn.Module, lanes: LanesSpec) -> LanesOutput:
    """Make what joins all states in the end."""
    return LanesOutput(_between(builder, "lane_out", lanes), norm)


def _between(builder: Builder, role: str, lanes: LanesSpec) -> list[Linear]:
    width = builder.spec.width
    return [builder.linear(width, [Part(builder.name(role, 0, lane), width)], False) for lane in range(lanes.count - 1)]


def build_lane(builder: Builder, index: int, layer: LayerSpec, lanes: LanesSpec) -> AltUp:
    """Make a layer that computes one of the states."""
    assert layer.mixer is not None and layer.ffn is not None and builder.spec.entry.per_layer is not None
    width = builder.spec.width

    def small(role: str, wide: int, rows: int) -> Linear:
        return Linear(wide, [Part(builder.name(role, index), rows)], builder.placement.unquantized)

    roles = ("norm1", "norm1_after", "norm2", "norm2_after")
    scale = None
    if lanes.scaled:
        scale = Exact(width, name=builder.name("lane_scale", index), placement=builder.placement)
    return AltUp(
        Lanes(
            lanes.active,
            builder.norm(width, builder.name("lane_norm", index)),
            (
                small("lane_router", width, lanes.count),
                small("lane_prediction", lanes.count, lanes.count**2),
                small("lane_correction", lanes.count, lanes.count),
            ),
        ),
        (builder.mixer(index, layer.mixer), builder.ffn(index, layer.ffn)),
        tuple(builder.norm(width, builder.name(role, index)) for role in roles),
        (
            builder.linear(width, [Part(builder.name("laurel_down", index), lanes.rank)], False),
            builder.linear(lanes.rank, [Part(builder.name("laurel_up", index), width)], False),
            builder.norm(width, builder.name("laurel_norm", index)),
        ),
        build_reader(builder, index, builder.spec.entry.per_layer),
        scale,
    )
