"""Parts that recurrent layers share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from vllm import ops
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
    """Each channel's last K elements, weighed.  [T, C] -> [T, C] float32"""

    def __init__(self, channels: int, kernel: int, name: str, placement: Placement, *, bias: bool) -> None:
        super().__init__()
        self.name = name
        self.weight = placement.parameter(channels, kernel)
        self.bias = placement.parameter(channels) if bias else None

    @property
    def state_shape(self) -> tuple[int, int]:
        """The elements before a token that its result depends on: [K - 1, C]"""
        channels, kernel = self.weight.shape
        return kernel - 1, channels

    def forward(self, x: Tensor, memory: Tensor, plan: StatePlan) -> Tensor:
        return ops.causal_conv(x, self.weight, self.bias, memory, plan)

    def windows(self) -> Iterator[Window]:
        yield Window(f"{self.name}.weight", TensorPlace(self.weight), partial(torch.squeeze, dim=1))
        if self.bias is not None:
            yield Window(f"{self.name}.bias", TensorPlace(self.bias))


class Exact(nn.Module):
    """A parameter that is kept in float32: what is computed from it is multiplied many times over."""

    def __init__(
        self, *shape: int, name: str, placement: Placement, cut: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        """`name` is the whole name in the checkpoint; `cut` takes what belongs here out of the tensor there."""
        super().__init__()
        self.name = name
        self.cut = cut
        self.value = nn.Parameter(torch.empty(shape, device=placement.device), requires_grad=False)

    def windows(self) -> Iterator[Window]:
        yield Window(self.name, TensorPlace(self.value), self.cut)


def dtype_name(dtype: torch.dtype) -> str:
    """Return what a `StateTensor` calls a dtype."""
    return str(dtype).removeprefix("torch.")
