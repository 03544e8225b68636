"""Norms that are made with the sums they read."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from vllm.layers.blocks import PreNorm, announce_norms
from vllm.layers.linear import Linear, Part
from vllm.layers.mlp import Mlp
from vllm.layers.norm import RmsNorm
from vllm.layers.placement import Placement
from vllm.ops.norms import rms_norm
from vllm.ops.parallel import Group, NextNorm

WIDTH = 8


class Alone:
    """Two processes of which the other one has nothing but zeros."""

    def __init__(self, eager: bool) -> None:
        self.eager = eager
        self.num_made = 0

    def takes(self, x: Tensor) -> bool:
        return True

    def add_up(self, x: Tensor, norm: NextNorm | None = None) -> Tensor:
        out = x.clone()
        if norm is not None and self.eager:
            self.num_made += 1
            norm.made = out, rms_norm(out, norm.weight, norm.eps, norm.offset)
        return out

    def abandon(self) -> None:
        raise AssertionError("nobody is gone")


class Mixer(nn.Module):
    def __init__(self, placement: Placement) -> None:
        super().__init__()
        self.out = Linear(WIDTH, [Part("out", WIDTH)], placement, shard="width")

    def forward(self, x: Tensor, step: Any, residual: Tensor) -> Tensor:
        y: Tensor = self.out(x.chunk(2, dim=1)[0], residual)
        return y


def run(eager: bool) -> tuple[Tensor, int]:
    shortcut = Alone(eager)
    placement = Placement(torch.float32, torch.device("cpu"), group=Group(0, 2, shortcut))
    blocks: list[nn.Module] = []
    for _ in range(3):
        norms = tuple(RmsNorm(WIDTH, "norm", placement, 1e-5) for _ in range(2))
        down = Linear(2 * WIDTH, [Part("down", WIDTH)], placement, shard="width")
        up = Linear(WIDTH, [Part("up", 2 * WIDTH)], placement, shard="rows", activation="silu")
        blocks.append(PreNorm(Mixer(placement), Mlp(up, down), cast("tuple[nn.Module, nn.Module]", norms)))
    last = RmsNorm(WIDTH, "norm", placement, 1e-5)
    announce_norms(blocks, last)
    torch.manual_seed(1)
    for module in (*blocks, last):
        for part in module.modules():
            for window in part.windows() if isinstance(part, RmsNorm | Linear) else ():
                window.place.put(torch.randn(window.place.shape))
    x = torch.randn(3, WIDTH)
    for block in blocks:
        x = block(x, None)
    return last(x), shortcut.num_made


def test_a_norm_that_comes_with_its_sum_is_not_made_again_and_is_the_same() -> None:
    made, count = run(True)
    assert count == 6
    torch.testing.assert_close(made, run(False)[0])  # by torch's norm and the kernel's


def test_another_tensor_is_no_sum() -> None:
    norm = NextNorm(torch.ones(2), 1e-5, 0.0)
    x = torch.zeros(1, 2)
    norm.made = x, x
    assert norm.take(torch.zeros(1, 2)) is None
    assert norm.take(x) is None, "a sum that was passed by is forgotten"
