"""Which rows go to FlashInfer's kernels and with what plan; a package that attends in plain torch stands in for it here."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ops.paged import Paged, Shape, reference
from tests.ops.triton import DEVICE
from vllm.ops.triton import attention, flashinfer

pytestmark = pytest.mark.usefixtures("all_there")


class Wrapper:
    """Attends as it was planned, over a paged cache of layout [blocks, heads, tokens, elements]."""

    runs = 0

    def __init__(self, workspace: Tensor, layout: str) -> None:
        assert layout == "HND"

    def plan(self, rows: Tensor, borders: Tensor, blocks: Tensor, last: Tensor, *sizes: int, **options: Any) -> None:
        heads, kv_heads, _, self.size = sizes
        assert options["causal"]
        self.rows, self.borders, self.blocks, self.last = rows.tolist(), borders.tolist(), blocks.long(), last.tolist()
        self.group, self.options = heads // kv_heads, options

    def run(self, q: Tensor, cache: tuple[Tensor, Tensor], out: Tensor | None = None) -> Tensor:
        Wrapper.runs += 1
        assert len(q) == self.rows[-1], "the tokens of the planned rows alone"
        parts = []
        for row, last in enumerate(self.last):
            blocks = self.blocks[self.borders[row] : self.borders[row + 1]]
            length = (len(blocks) - 1) * self.size + last
            k, v = (x[blocks].transpose(1, 2).flatten(0, 1)[:length].repeat_interleave(self.group, 1) for x in cache)
            parts.append(self._attend(q[self.rows[row] : self.rows[row + 1]], k, v))
        found = torch.cat(parts).to(q.dtype)
        return found if out is None else out.copy_(found)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = torch.einsum("qhe,khe->hqk", q.double(), k.double()) * self.options["sm_scale"]
        if cap := self.options["logits_soft_cap"]:
            scores = cap * torch.tanh(scores / cap)
        distance = torch.arange(len(k) - len(q), len(k))[:, None] - torch.arange(len(k))
        hidden = distance < 0
        if (left := self.options["window_left"]) >= 0:
            hidden |= distance > left
        return torch.einsum("hqk,khe->qhe", scores.masked_fill(hidden, -torch.inf).softmax(-1), v.double())


@pytest.fixture(autouse=True)
def package(monkeypatch: pytest.MonkeyPatch) -> type[Wrapper]:
    stand_in = types.ModuleType("flashinfer")
    stand_in.BatchPrefillWithPagedKVCacheWrapper = Wrapper  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flashinfer", stand_in)
    monkeypatch.setattr(flashinfer, "_LEAST_TOKENS", 20)
    monkeypatch.setattr(attention, "MOST_RECORDED", 20)
    monkeypatch.setattr(Wrapper, "runs", 0)
    return Wrapper


@pytest.mark.parametrize(
    "shape", [Shape(4, 2, 64), Shape(2, 2, 64, window=9), Shape(3, 1, 64, softcap=2.0, block_size=8)], ids=repr
)
def test_longer_rows_go_there_and_single_tokens_do_not(shape: Shape) -> None:
    torch.manual_seed(0)
    backend = flashinfer.FlashInferAttention(DEVICE)
    paged = Paged(backend, shape, [shape.draw(length, torch.float16) for length in (50, 31, 40)])
    Wrapper.runs = 0  # its blocks were filled before
    got = [[part] for part in paged.step({0: (0, 30), 1: (0, 30), 2: (0, 2)}).values()]
    for step in ({0: (30, 31), 1: (30, 31), 2: (2, 39)}, {0: (31, 50), 2: (39, 40)}):  # the last one has too few
        for row, part in paged.step(step).items():
            got[row].append(part)
    assert Wrapper.runs == 2
    for parts, sequence in zip(got, paged.sequences, strict=True):
        torch.testing.assert_close(torch.cat(parts).double(), reference(shape, *sequence), rtol=4e-3, atol=4e-3)


@pytest.mark.parametrize(
    "shape", [Shape(2, 1, 64, sinks=True), Shape(2, 1, 48), Shape(2, 1, 64, causal=False)], ids=repr
)
def test_what_it_has_no_kernel_for_goes_to_ours(shape: Shape) -> None:
    paged = Paged(flashinfer.FlashInferAttention(DEVICE), shape, [shape.draw(40, torch.float16)])
    found = paged.step({0: (0, 40)})[0]
    torch.testing.assert_close(found.double(), reference(shape, *paged.sequences[0]), rtol=4e-3, atol=4e-3)
    assert Wrapper.runs == 0


def test_ours_go_on_where_it_fails(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(Wrapper, "plan", fail)
    shape = Shape(2, 1, 64)
    paged = Paged(flashinfer.FlashInferAttention(DEVICE), shape, [shape.draw(80, torch.float16)])
    found = torch.cat([paged.step({0: (0, 40)})[0], paged.step({0: (40, 80)})[0]])
    torch.testing.assert_close(found.double(), reference(shape, *paged.sequences[0]), rtol=4e-3, atol=4e-3)
    assert [record.message for record in caplog.records if "FlashInfer" in record.message] == [
        "FlashInfer can't be used, the own kernels are: no compiler"
    ]


def test_it_is_not_for_processors() -> None:
    assert not flashinfer.installed(torch.device("cpu"))
