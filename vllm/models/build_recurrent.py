"""From the specs of recurrent layers to modules; a part of `build`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vllm.layers.delta_net import GatedDeltaNet, KimiDeltaNet
from vllm.layers.lightning import LightningAttention
from vllm.layers.linear import Linear, Part, cut_third, scaled, split
from vllm.layers.mamba import HeadMamba, Mamba
from vllm.layers.mamba2 import Gate, GatedNorm, Mamba2
from vllm.layers.norm import NamedRmsNorm, PlainRmsNorm, RmsNorm
from vllm.layers.recurrent import CausalConv, Exact, decay_rates
from vllm.layers.rg_lru import HeadProduct, RgLru, lru_rates
from vllm.layers.short_conv import ShortConv
from vllm.models.spec_recurrent import DeltaNetSpec, LightningSpec, LruSpec, Mamba2Spec, MambaSpec, ShortConvSpec

if TYPE_CHECKING:
    from vllm.models.build import Builder, Index

Recurrent = MambaSpec | Mamba2Spec | ShortConvSpec | DeltaNetSpec | LruSpec | LightningSpec


def build_recurrent(builder: Builder, index: Index, mixer: Recurrent) -> nn.Module:
    """Make a recurrent layer."""
    if isinstance(mixer, ShortConvSpec):
        return _short_conv(builder, index, mixer)
    builder.check_activation(mixer.activation)
    if isinstance(mixer, DeltaNetSpec):
        return _delta_net(builder, index, mixer)
    if isinstance(mixer, LightningSpec):
        return _lightning(builder, index, mixer)
    if isinstance(mixer, LruSpec):
        return _lru(builder, index, mixer)
    return _mamba(builder, index, mixer) if isinstance(mixer, MambaSpec) else _mamba2(builder, index, mixer)


def _mamba(builder: Builder, index: Index, mixer: MambaSpec) -> Mamba:
    inner, state, heads = mixer.width, mixer.state, mixer.heads
    roles = (("dt_norm", mixer.rank), ("b_norm", state), ("c_norm", state))
    enter, select = _mamba_inputs(builder, index, mixer)
    spread = [Part(builder.name("spread", index), heads or inner)]
    kind = partial(HeadMamba, _exact(builder, "dt_bias", index, heads)) if heads else Mamba
    return kind(
        builder.next_cache(),
        (heads, state, inner // heads) if heads else (1, state, inner),
        (
            builder.linear(builder.spec.width, enter, mixer.bias),
            builder.linear(inner, select, False),
            builder.linear(mixer.rank, spread, not heads),
            builder.linear(inner, [builder.branch_end("leave", index)], mixer.bias),
        ),
        CausalConv(_conv(builder, index, inner), mixer.kernel, builder.placement, bias=mixer.conv_bias),
        (
            _rates(builder, index, *((heads,) if heads else (1, state, inner))),
            _exact(builder, "skip", index, *((heads,) if heads else (1, inner))),
        ),
        [_norm(builder, role, index, width, mixer) for role, width in roles],
        mixer.activation,
    )


def _mamba_inputs(builder: Builder, index: Index, mixer: MambaSpec) -> tuple[list[Part], list[Part]]:
    """Return the parts of the products to channels and gate, and to time step, input and output weights."""
    inner, state, rank = mixer.width, mixer.state, mixer.rank
    enter, select = builder.name("enter", index), builder.name("select", index)
    if not mixer.heads:
        return [Part(enter, 2 * inner)], [Part(select, rank + 2 * state)]
    gate, channels = _per_group(enter, mixer.heads, (inner, inner))
    *weights, step = split(select, (state, state, rank))
    return [channels, gate], [step, *weights]


def _norm(builder: Builder, role: str, index: Index, width: int, mixer: MambaSpec) -> nn.Module:
    if mixer.norm == "":
        return nn.Identity()
    if mixer.norm == "plain":
        return PlainRmsNorm(width, builder.placement, mixer.norm_eps)
    kind = NamedRmsNorm if mixer.heads else RmsNorm
    return kind(width, builder.name(role, index), builder.placement, mixer.norm_eps)


def _mamba2(builder: Builder, index: Index, mixer: Mamba2Spec) -> Mamba2:
    heads, groups = mixer.heads, mixer.groups
    inner = heads * mixer.head_dim
    channels = inner + 2 * groups * mixer.state
    enter = [Part(builder.name("enter", index), inner + channels + heads)]
    if mixer.scales:
        sizes = (inner, inner, groups * mixer.state, groups * mixer.state, heads)
        runs = split(enter[0].name, sizes)
        enter = [replace(run, cut=scaled(run.cut, by)) for run, by in zip(runs, mixer.scales, strict=True)]
    return Mamba2(
        builder.next_cache(),
        (heads, mixer.head_dim, groups, mixer.state),
        (
            builder.linear(builder.spec.width, enter, mixer.bias),
            builder.linear(inner, [builder.branch_end("leave", index)], mixer.bias),
        ),
        CausalConv(_conv(builder, index, channels), mixer.kernel, builder.placement, bias=mixer.conv_bias),
        (
            _rates(builder, index, heads),
            _exact(builder, "skip", index, heads),
            _exact(builder, "dt_bias", index, heads),
        ),
        _gate(builder, index, mixer),
        activation=mixer.activation,
        time_limits=mixer.time_limits,
    )


def _gate(builder: Builder, index: Index, mixer: Mamba2Spec) -> nn.Module:
    if mixer.norm == "":
        return Gate()
    width, name = mixer.heads * mixer.head_dim, builder.name("mixer_norm", index)
    return GatedNorm(width, mixer.groups, name, builder.placement, mixer.norm_eps, mixer.norm)


def _short_conv(builder: Builder, index: Index, mixer: ShortConvSpec) -> ShortConv:
    width = builder.spec.width
    projections = (
        builder.linear(width, [Part(builder.name("enter", index), 3 * width)], mixer.bias),
        builder.linear(width, [builder.branch_end("leave", index)], mixer.bias),
    )
    conv = CausalConv(_conv(builder, index, width), mixer.kernel, builder.placement, bias=mixer.bias)
    return ShortConv(builder.next_cache(), projections, conv)


def _lightning(builder: Builder, index: Index, mixer: LightningSpec) -> LightningAttention:
    inner, width, name = mixer.heads * mixer.head_dim, builder.spec.width, builder.name("qkv", index)
    enter = [Part(name, inner, partial(cut_third, which, mixer.head_dim)) for which in range(3)]
    return LightningAttention(
        builder.next_cache(),
        (
            builder.linear(width, enter, False, activation=mixer.activation),
            builder.linear(width, [Part(builder.name("enter_gate", index), inner)], False),
            builder.linear(inner, [builder.branch_end("leave", index)], False),
        ),
        torch.tensor(mixer.rates, dtype=torch.float32, device=builder.placement.device),
        mixer.head_dim,
        RmsNorm(inner, builder.name("mixer_norm", index), builder.placement, mixer.norm_eps),
    )


def _lru(builder: Builder, index: Index, mixer: LruSpec) -> RgLru:
    width, placement, name = mixer.width, builder.placement, builder.name("lru", index)
    opening, keeping = (
        HeadProduct(mixer.heads, width // mixer.heads, f"{name}.{part}_gate", placement)
        for part in ("input", "recurrent")
    )
    enter = [Part(builder.name(role, index), width) for role in ("enter", "enter_gate")]
    return RgLru(
        builder.next_cache(),
        (
            builder.linear(builder.spec.width, enter, True),
            builder.linear(width, [builder.branch_end("leave", index)], True),
        ),
        CausalConv(_conv(builder, index, width), mixer.kernel, placement, bias=True),
        (opening, keeping),
        Exact(width, name=f"{name}.recurrent_param", placement=placement, cut=lru_rates),
        mixer.activation,
    )


def _conv(builder: Builder, index: Index, channels: int) -> list[Part]:
    return [Part(builder.name("conv", index), channels)]


def _delta_net(builder: Builder, index: Index, mixer: DeltaNetSpec) -> GatedDeltaNet:
    width, placement, heads = builder.spec.width, builder.placement, mixer.value_heads
    enter, control = _delta_inputs(builder, index, mixer)
    each = (heads, mixer.key_dim) if mixer.rank else (heads,)
    kind = partial(KimiDeltaNet, _widen(builder, index, mixer)) if mixer.rank else GatedDeltaNet
    return kind(
        builder.next_cache(),
        (mixer.key_heads, heads, mixer.key_dim, mixer.value_dim),
        (
            builder.linear(width, enter, False),
            Linear(width, control, placement.unquantized),
            builder.linear(heads * mixer.value_dim, [builder.branch_end("leave", index)], False),
        ),
        CausalConv(_delta_conv(builder, index, mixer), mixer.kernel, placement, bias=False),
        (_rates(builder, index, heads), _exact(builder, "dt_bias", index, *each)),
        RmsNorm(mixer.value_dim, builder.name("mixer_norm", index), placement, mixer.norm_eps),
        activation=mixer.activation,
        gate=mixer.gate,
        strength=mixer.strength,
    )


def _widen(builder: Builder, index: Index, mixer: DeltaNetSpec) -> tuple[Linear, Linear]:
    """Make the products behind something narrow, to time steps and gate."""
    steps, gate = mixer.key_heads * mixer.key_dim, mixer.value_heads * mixer.value_dim
    return (
        builder.linear(mixer.rank, [Part(builder.name("decay_up", index), steps)], False),
        builder.linear(mixer.rank, [Part(builder.name("enter_gate_up", index), gate)], False),
    )


def _delta_inputs(builder: Builder, index: Index, mixer: DeltaNetSpec) -> tuple[list[Part], list[Part]]:
    """Return the parts of the products to queries, keys, values and gate; and to what controls the state."""
    keys, values, heads = mixer.key_heads * mixer.key_dim, mixer.value_heads * mixer.value_dim, mixer.value_heads
    if mixer.layout == "per_group":
        enter = _per_group(builder.name("enter", index), mixer.key_heads, (keys, keys, values, values))
        return enter, _per_group(builder.name("control", index), mixer.key_heads, (heads,) * 2)

    def parts(**roles: int) -> list[Part]:
        return [Part(builder.name(role, index), rows) for role, rows in roles.items()]

    if mixer.layout == "split":
        return parts(enter=2 * keys + values, enter_gate=values), parts(beta=heads, decay=heads)
    if mixer.rank:
        return parts(delta_q=keys, delta_k=keys, delta_v=values, decay=mixer.rank, enter_gate=mixer.rank), parts(
            beta=heads
        )
    return parts(delta_q=keys, delta_k=keys, delta_v=values, enter_gate=values), parts(beta=heads, decay=heads)


def _delta_conv(builder: Builder, index: Index, mixer: DeltaNetSpec) -> list[Part]:
    keys, values = mixer.key_heads * mixer.key_dim, mixer.value_heads * mixer.value_dim
    if mixer.layout != "separate":
        return _conv(builder, index, 2 * keys + values)
    sizes = {"conv_q": keys, "conv_k": keys, "conv_v": values}
    return [Part(builder.name(role, index), rows) for role, rows in sizes.items()]


def _per_group(name: str, groups: int, sizes: tuple[int, ...]) -> list[Part]:
    """Return the parts of a tensor that holds all of the first group, then all of the second …"""
    ends = list(accumulate(size // groups for size in sizes))
    return [
        Part(name, size, partial(_cut_groups, groups, end - size // groups, end))
        for size, end in zip(sizes, ends, strict=True)
    ]


def _cut_groups(groups: int, first: int, end: int, stored: Tensor) -> Tensor:
    """Take rows [first, end) of each group.  [N, D] -> [groups (end - first), D]"""
    return stored.unflatten(0, (groups, -1))[:, first:end].flatten(0, 1)


def _exact(builder: Builder, role: str, index: Index, *shape: int) -> Exact:
    cut = partial(torch.reshape, shape=shape)
    return Exact(*shape, name=builder.name(role, index), placement=builder.placement, cut=cut)


def _rates(builder: Builder, index: Index, *shape: int) -> Exact:
    """Make the rates of a decay, [H] or [1, N, I], of which a checkpoint has the logarithms, [H] or [I, N]."""
    return Exact(*shape, name=builder.name("a_log", index), placement=builder.placement, cut=partial(_rates_of, shape))


def _rates_of(shape: tuple[int, ...], stored: Tensor) -> Tensor:
    return decay_rates(stored.T if stored.dim() == 2 else stored).reshape(shape)
