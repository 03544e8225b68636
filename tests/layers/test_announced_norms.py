"""Norms that are made with the sums they read, and sums that are written over."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from vllm.layers.blocks import PreNorm, announce_norms, spend_sums
from vllm.layers.linear import Linear, Part
from vllm.layers.mlp import Mlp
from vllm.layers.norm import RmsNorm
from vllm.layers.placement import Placement
from vllm.ops.matrix import DenseMatrix
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
        y: Tensor = self.out(x[:, : self.out.matrix.shape.width], residual)
        return y


def run(eager: bool) -> tuple[Tensor, int]:
    shortcut = Alone(eager)
    blocks, last = model(Placement(torch.float32, torch.device("cpu"), group=Group(0, 2, shortcut)))
    announce_norms(blocks, last)
    x = torch.randn(3, WIDTH)
    for block in blocks:
        x = block(x, None)
    return last(x), shortcut.num_made


def model(placement: Placement) -> tuple[list[nn.Module], RmsNorm]:
    blocks: list[nn.Module] = []
    for _ in range(3):
        norms = tuple(RmsNorm(WIDTH, "norm", placement, 1e-5) for _ in range(2))
        down = Linear(2 * WIDTH, [Part("down", WIDTH)], placement, shard="width")
        up = Linear(WIDTH, [Part("up", 2 * WIDTH)], placement, shard="rows", activation="silu")
        blocks.append(PreNorm(Mixer(placement), Mlp(up, down), cast("tuple[nn.Module, nn.Module]", norms)))
    last = RmsNorm(WIDTH, "norm", placement, 1e-5)
    torch.manual_seed(1)
    for module in (*blocks, last):
        for part in module.modules():
            for window in part.windows() if isinstance(part, RmsNorm | Linear) else ():
                window.place.put(torch.randn(window.place.shape))
    return blocks, last


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


def test_sums_are_written_over_but_for_what_comes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    class Spending(DenseMatrix):
        """As a GPU's matrix does it."""

        def multiply(self, x: Tensor, *, residual: Tensor | None = None, **options: Any) -> Tensor:
            y = super().multiply(x, residual=residual, **options)
            if not self.spends_residual or residual is None:
                return y
            spent.append(residual)
            return residual.copy_(y)

    spent: list[Tensor] = []
    x = torch.randn(3, WIDTH)
    results = []
    for spends in (False, True):
        with monkeypatch.context() as patch:
            patch.setattr("vllm.ops.matrix", Spending)
            blocks, last = model(Placement(torch.float32, torch.device("cpu")))
        if spends:
            spend_sums(blocks)
        y = came = x.clone()
        for block in blocks:
            y = block(y, None)
        assert torch.equal(came, x)
        results.append(last(y))
    assert torch.equal(*results)
    assert len(spent) == 5
