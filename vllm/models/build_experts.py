"""From the spec of a mixture of experts to modules; a part of `build`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import Tensor, nn

from vllm.errors import ConfigError
from vllm.layers.linear import Linear, Part, cut_rows, cut_width, split
from vllm.layers.mlp import (
    ClampedGate,
    ExpertPart,
    GuidedMoE,
    IdentityMoE,
    InputMoE,
    Mlp,
    MoE,
    NarrowMoE,
    NormedRouter,
    SharedMoE,
)
from vllm.layers.norm import PlainRmsNorm
from vllm.layers.recurrent import Exact
from vllm.models.spec import MoeSpec
from vllm.ops.moe import Routing
from vllm.ops.parallel import Group

if TYPE_CHECKING:
    from vllm.models.build import Builder, Index


def build_experts(builder: Builder, index: Index, moe: MoeSpec) -> nn.Module:
    """Make a layer's experts, and the network that every token passes beside them."""
    if builder.placement.group.size > 1 and moe.layout == "mxfp4":
        raise ConfigError("experts in mxfp4 can't be shared among processes; use tensor_parallel_size=1")
    builder.check_activation(moe.activation)
    chosen = _chosen(builder, index, moe)
    return _with_shared(builder, index, moe, chosen) if moe.shared_width else chosen


def _chosen(builder: Builder, index: Index, moe: MoeSpec) -> MoE:
    width, exact, experts = builder.spec.width, builder.placement.unquantized, builder.placement.experts
    correction, choices = None, moe.num_experts + moe.identities
    if moe.corrected:
        name = builder.name("correction", index)
        correction = Exact(choices, name=name, placement=builder.placement, cut=torch.flatten)
    kind: Callable[..., MoE] = InputMoE if moe.weighs_input else MoE
    if moe.identities:
        kind = IdentityMoE
    if moe.latent:
        kind = partial(NarrowMoE, _around(builder, index, moe))
    router: nn.Module = Linear(width, [Part(builder.name("router", index), choices)], exact, bias=moe.router_bias)
    if moe.guided:
        norm = PlainRmsNorm(width, builder.placement, builder.spec.norm.eps)
        scale = Exact(width, name=builder.name("router_scale", index), placement=builder.placement)
        router = NormedRouter(norm, scale, cast("Linear", router))
        scales = Exact(moe.num_experts, name=builder.name("expert_scales", index), placement=builder.placement)
        kind = partial(GuidedMoE, scales)
    read = moe.latent or width
    group = builder.placement.group
    inner = group.share(moe.width, "an expert's inner elements")
    return kind(
        router,
        [_share(part, group) for expert in range(moe.num_experts) for part in _parts(builder, index, moe, expert)],
        (
            experts(
                moe.num_experts,
                (1 + moe.gated) * inner,
                read,
                bias=moe.bias,
                gated=moe.gated and moe.clamp is None,
            ),
            experts(moe.num_experts, read, inner, bias=moe.bias),
        ),
        routing=Routing(
            moe.top_k,
            moe.renormalize,
            moe.scores == "sigmoid",
            moe.groups,
            moe.top_groups,
            moe.group_best,
            moe.scale * builder.spec.branch_scale,
            moe.jitter,
        ),
        activation=moe.activation,
        clamp=moe.clamp,
        correction=correction,
        group=group,
    )


def _around(builder: Builder, index: Index, moe: MoeSpec) -> tuple[Linear, Linear]:
    """Make the products between a hidden state and what experts work on."""
    width = builder.spec.width
    narrow = builder.linear(width, [Part(builder.name("narrow", index), moe.latent)], False)
    return narrow, builder.linear(moe.latent, [Part(builder.name("widen", index), width)], False)


def _with_shared(builder: Builder, index: Index, moe: MoeSpec, chosen: MoE) -> SharedMoE:
    width = builder.spec.width
    if "shared_gate_up" in builder.spec.names:
        up = split(builder.name("shared_gate_up", index), 2 * (moe.shared_width,))
    else:
        roles = ("shared_gate", "shared_up") if moe.gated else ("shared_up",)
        up = [Part(builder.name(role, index), moe.shared_width) for role in roles]
    if moe.shared_clamp is None:
        product: nn.Module = builder.linear(width, up, False, activation=moe.activation, gated=moe.gated, shard="rows")
    else:
        product = ClampedGate(builder.linear(width, up, False, shard="rows"), moe.activation, moe.shared_clamp)
    shared = Mlp(
        product,
        builder.linear(moe.shared_width, [builder.branch_end("shared_down", index)], False, shard="width"),
    )
    gate = [Part(builder.name("shared_router", index), 1)] if moe.shared_gate else []
    return SharedMoE(chosen, shared, Linear(width, gate, builder.placement.unquantized) if gate else None)


def _parts(builder: Builder, index: Index, moe: MoeSpec, expert: int) -> Iterator[ExpertPart]:
    """Yield what the checkpoint has of an expert."""
    width, inner = moe.latent or builder.spec.width, moe.width
    if moe.layout == "each":
        up, down = (builder.name(f"expert_{role}", index, expert) for role in ("up", "down"))
        if moe.gated:
            gate = builder.name("expert_gate", index, expert)
            yield ExpertPart(f"{gate}.weight", expert, "gate_up", 0, inner)
        yield ExpertPart(f"{up}.weight", expert, "gate_up", inner if moe.gated else 0, inner)
        yield ExpertPart(f"{down}.weight", expert, "down", 0, width)
        return
    if moe.layout == "flat":
        cut = partial(_take_rows, moe.num_experts, expert)
        yield ExpertPart(builder.name("experts_gate", index), expert, "gate_up", 0, inner, cut)
        yield ExpertPart(builder.name("experts_up", index), expert, "gate_up", inner, inner, cut)
        columns = partial(_take_columns, moe.num_experts, expert)
        yield ExpertPart(builder.name("experts_down", index), expert, "down", 0, width, columns)
        return
    if moe.layout == "apart":
        whole_matrix = _cut(expert, False)
        yield ExpertPart(builder.name("experts_gate", index), expert, "gate_up", 0, inner, whole_matrix)
        yield ExpertPart(builder.name("experts_up", index), expert, "gate_up", inner, inner, whole_matrix)
        yield ExpertPart(builder.name("experts_down", index), expert, "down", 0, width, whole_matrix)
        return
    gate_up, down = builder.name("experts_gate_up", index), builder.name("experts_down", index)
    kind: Literal["rows", "mxfp4"] = "mxfp4" if moe.layout == "mxfp4" else "rows"
    transposed = moe.layout in ("transposed", "turns")
    yield ExpertPart(down, expert, "down", 0, width, _cut(expert, transposed), kind)
    whole = builder.placement.group.size == 1
    if moe.layout in ("stacked", "transposed") and whole:
        yield ExpertPart(gate_up, expert, "gate_up", 0, 2 * inner, _cut(expert, transposed))
        return
    for half in (0, 1):
        run = slice(half, None, 2) if moe.layout in ("turns", "mxfp4") else slice(half * inner, (half + 1) * inner)
        yield ExpertPart(gate_up, expert, "gate_up", half * inner, inner, _cut(expert, transposed, run), kind)
        if moe.bias:
            biases = f"{gate_up}_bias"
            yield ExpertPart(biases, expert, "gate_up", half * inner, inner, _cut(expert, False, run), "biases")
    if moe.bias:
        yield ExpertPart(f"{down}_bias", expert, "down", 0, width, _cut(expert, False), "biases")


def _cut(expert: int, transposed: bool, run: slice | None = None) -> Callable[[Tensor], Tensor]:
    """Return what takes an expert's rows, or some of them, out of a tensor of all experts'."""
    return partial(_take, expert, transposed, run)


def _take(expert: int, transposed: bool, run: slice | None, stored: Tensor) -> Tensor:
    rows = stored[expert].T if transposed else stored[expert]
    return rows if run is None else rows[run]


def _take_rows(num_experts: int, expert: int, stored: Tensor) -> Tensor:
    return stored.unflatten(0, (num_experts, -1))[expert]


def _take_columns(num_experts: int, expert: int, stored: Tensor) -> Tensor:
    return _take_rows(num_experts, expert, stored).T


def _share(part: ExpertPart, group: Group) -> ExpertPart:
    """Return a process's share of a part: some of the inner elements of every expert."""
    if group.size == 1:
        return part
    if part.matrix == "down":
        return replace(part, cut=partial(cut_width, part.cut, group))
    first, rows = part.first // group.size, part.rows // group.size
    return replace(part, first=first, rows=rows, cut=partial(cut_rows, part.cut, group))
