"""Hidden states that go past some layers and are mixed in behind them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from vllm.layers.step import Step


class Way:
    """The way of a hidden state past some layers."""

    def __init__(self, share: float) -> None:
        """`share` is what the state gets where it is mixed in; the other gets what is left of 1."""
        self.share = share
        self._state: Tensor | None = None

    def enter(self, x: Tensor) -> None:
        self._state = x

    def leave(self, x: Tensor) -> Tensor:
        """Mix the state in.  [T, D] -> [T, D]"""
        state, self._state = self._state, None
        assert state is not None, "its source comes before its target"
        return state * self.share + x * (1 - self.share)


class Passed(nn.Module):
    """A block at which ways begin or end.  [T, D] -> [T, D]"""

    def __init__(self, block: nn.Module, begin: Sequence[Way], end: Sequence[Way]) -> None:
        super().__init__()
        self.block = block
        self.begin, self.end = tuple(begin), tuple(end)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        for way in self.begin:
            way.enter(x)
        for way in self.end:
            x = way.leave(x)
        y: Tensor = self.block(x, step)
        return y
