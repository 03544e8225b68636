"""A transformer block that several layers share, and that helps each of them by itself: zamba2.

embedding ──┐
x ──┬───────┴─▶ norm ─▶ attention ─▶ norm ─▶ feed-forward ─▶ join ──┐
    ├───────────────────────────────────────────────────────────────+─▶ norm ─▶ mixer ──┐
    └───────────────────────────────────────────────────────────────────────────────────+──▶
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from vllm import ops
from vllm.layers.linear import Linear
from vllm.layers.step import Step


class Kept(nn.Module):
    """An entry whose result layers read again."""

    def __init__(self, entry: nn.Module) -> None:
        super().__init__()
        self.entry = entry
        self._result: Tensor | None = None

    def forward(self, step: Step) -> Tensor:
        self._result = result = self.entry(step)
        return result

    @property
    def result(self) -> Tensor:
        """Of the step that is under way.  [T, D]"""
        assert self._result is not None, "the entry is run before the layers"
        return self._result


class Adapted(nn.Module):
    """A matrix that layers share, and what one of them adds to it by narrow ones.  [T, D] -> [T, N]"""

    def __init__(self, shared: Linear, down: Linear, ups: Sequence[Linear]) -> None:
        """`down` makes what each of `ups` reads; their results lie side by side."""
        super().__init__()
        self.shared = shared
        self.down = down
        self.ups = nn.ModuleList(ups)

    def forward(self, x: Tensor) -> Tensor:
        narrow = self.down(x).chunk(len(self.ups), dim=1)
        added = [up(part) for up, part in zip(self.ups, narrow, strict=True)]
        y: Tensor = self.shared(x, added[0] if len(added) == 1 else ops.side_by_side(*added))
        return y


class AdaptedGate(Adapted):
    """The same under an activation, where the first half of the rows is the gate of the second.  [T, D] -> [T, N / 2]"""

    def __init__(self, shared: Linear, down: Linear, up: Linear, activation: str) -> None:
        super().__init__(shared, down, [up])
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        gate, up = super().forward(x).chunk(2, dim=1)
        return ops.gate(up, gate, self.activation)


class Assisted(nn.Module):
    """A layer's mixer, and the block that helps it.  [T, D] -> [T, D]"""

    def __init__(
        self,
        entry: Kept,
        assistant: tuple[nn.Module, nn.Module, nn.Module],
        mixer: nn.Module,
        norms: tuple[nn.Module, nn.Module, nn.Module],
    ) -> None:
        """`assistant`: attention, feed-forward, and the product that brings the result to the mixer; `norms`: before attention,
        feed-forward and mixer."""
        super().__init__()
        self.kept = (entry,)  # no part of this module
        self.attention, self.ffn, self.join = assistant
        self.mixer = mixer
        self.before_attention, self.before_ffn, self.before_mixer = norms

    def forward(self, x: Tensor, step: Step) -> Tensor:
        both = ops.side_by_side(x, self.kept[0].result)
        y = self.ffn(self.before_ffn(self.attention(self.before_attention(both), step)))
        y = self.mixer(self.before_mixer(self.join(y, x)), step, x)
        return y
