"""Parts that recurrent layers share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from vllm import ops
from vllm.layers.linear import Part
from vllm.layers.placement import Placement
from vllm.layers.step import Step
from vllm.ops.states import StateCache, StatePlan
from vllm.weights import TensorPlace, Window


def states_of(step: Step, index: int) -> tuple[StateCache, StatePlan]:
    """Return a layer's states, and where those of a step are in them."""
    plan = step.plans[step.group_of[index]]
    assert isinstance(plan, StatePlan)
    return step.caches[index], plan


class CausalConv(nn.Module):
    """Each channel's last K elements, weighed, and an activation.  [T, C] -> [T, C]"""

    def __init__(self, parts: Sequence[Part], kernel: int, placement: Placement, *, bias: bool) -> None:
        """`parts` are runs of channels."""
        super().__init__()
        self.parts = tuple(parts)
        channels = sum(part.rows for part in parts)
        self.weight = placement.parameter(kernel, channels)
        self.bias = placement.parameter(channels) if bias else None

    @property
    def state_shape(self) -> tuple[int, int]:
        """The elements before a token that its result depends on: [K - 1, C]"""
        kernel, channels = self.weight.shape
        return kernel - 1, channels

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        plan: StatePlan,
        activation: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """`dtype` is the result's, by default that of x."""
        return ops.causal_conv(x, self.weight, self.bias, memory, plan, activation, dtype)

    def windows(self) -> Iterator[Window]:
        first = 0
        for part in self.parts:
            end = first + part.rows
            yield Window(f"{part.name}.weight", TensorPlace(self.weight[:, first:end]), _taps)
            if self.bias is not None:
                yield Window(f"{part.name}.bias", TensorPlace(self.bias[first:end]))
            first = end


class Exact(nn.Module):
    """A parameter that is kept in float32: what is computed from it is multiplied many times over."""

    def __init__(
        self, *shape: int, name: str, placement: Placement, cut: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        """`name` is the whole name in the checkpoint; `cut` makes the parameter out of the tensor there."""
        super().__init__()
        self.name = name
        self.cut = cut
        self.value = nn.Parameter(torch.empty(shape, device=placement.device), requires_grad=False)

    def windows(self) -> Iterator[Window]:
        yield Window(self.name, TensorPlace(self.value), self.cut)


def decay_rates(stored: Tensor) -> Tensor:
    """Return -exp(x): what the rates of a decay are stored as is their logarithm.  Same shape, float32"""
    return -torch.exp(stored.float())


def _taps(stored: Tensor) -> Tensor:
    """[C, 1, K] -> [K, C]"""
    return stored.squeeze(1).T


def dtype_name(dtype: torch.dtype) -> str:
    """Return what a `StateTensor` calls a dtype."""
    return str(dtype).removeprefix("torch.")
