"""A gated linear recurrence: recurrent_gemma.  https://arxiv.org/abs/2402.19427"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn import functional

from vllm import ops
from vllm.kv_cache.spec import State, StateTensor
from vllm.layers.linear import Linear
from vllm.layers.placement import Placement
from vllm.layers.recurrent import CausalConv, Exact, dtype_name, states_of
from vllm.layers.step import Step
from vllm.ops.per_head import per_head
from vllm.weights import TensorPlace, Window


class HeadProduct(nn.Module):
    """A product of each head with a matrix of its own.  [T, H E] -> [T, H E]"""

    def __init__(self, heads: int, width: int, name: str, placement: Placement) -> None:
        """`name` is how the names of weight and bias begin."""
        super().__init__()
        self.name = name
        self.weight = placement.parameter(heads, width, width)
        self.bias = placement.parameter(heads, width)

    def forward(self, x: Tensor) -> Tensor:
        y = per_head(x.unflatten(1, self.bias.shape), self.weight)
        return (y + self.bias).reshape(x.shape)

    def windows(self) -> Iterator[Window]:
        yield Window(f"{self.name}_weight", TensorPlace(self.weight))
        yield Window(f"{self.name}_bias", TensorPlace(self.bias))


def lru_rates(stored: Tensor) -> Tensor:
    """Return -8 softplus(x), the rates of the decay.  Same shape, float32"""
    return -8.0 * functional.softplus(stored.float())


class RgLru(nn.Module):
    """out(activation(y) · recurrence(conv(x))), where x and y are made of a token.  [T, D] -> [T, D]"""

    def __init__(
        self,
        index: int,
        projections: tuple[Linear, Linear],
        conv: CausalConv,
        gates: tuple[HeadProduct, HeadProduct],
        rates: Exact,
        activation: str,
    ) -> None:
        """`index` counts the layers that have a cache, in call order.  `projections` are those to x and y, and out; `gates`
        say how much of a token is taken up, and how much of a state is kept; `rates` [C] are those of the decay."""
        super().__init__()
        self.index = index
        self.enter, self.leave = projections
        self.conv = conv
        self.opening, self.keeping = gates
        self.rates = rates
        self.activation = activation

    @property
    def cache_spec(self) -> State:
        """What memory this layer needs."""
        before = StateTensor(self.conv.state_shape, dtype_name(self.conv.weight.dtype))
        return State((before, StateTensor(tuple(self.rates.value.shape), "float32")))

    def forward(self, x: Tensor, step: Step, residual: Tensor | None = None) -> Tensor:
        (before, states), plan = states_of(step, self.index)
        channels, y = self.enter(x).chunk(2, dim=1)
        channels = self.conv(channels, before, plan)
        found = ops.rg_lru(channels, self.opening(channels), self.keeping(channels), self.rates.value, states, plan)
        return self.leave(ops.gate(found, y, self.activation), residual)
