"""Recurrences against their definitions, and the same bits however rows are cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vllm.kv_cache.spec import State, StateTensor
from vllm.ops import native, recurrent
from vllm.ops.attention import Layout
from vllm.ops.native import recurrent as native_recurrent
from vllm.ops.native import set_threads
from vllm.ops.recurrent import Fading, fold, softplus
from vllm.ops.states import StateMemory, StatePlan

CPU = torch.device("cpu")
SIZE = 4
LENGTHS = (13, 1, 30, 8)
Operation = Callable[[slice, Tensor, StatePlan], Tensor]


@pytest.fixture(params=["torch", "native"])
def kind(request: pytest.FixtureRequest) -> Any:
    """The module with the operations."""
    if request.param == "torch":
        return recurrent
    if native.library() is None:
        pytest.skip("there are no kernels")
    return native_recurrent


@pytest.fixture(autouse=True, params=[1, 2], ids=["1 thread", "2 threads"])
def _a_seed(request: pytest.FixtureRequest) -> Iterator[None]:
    threads = torch.get_num_threads()
    set_threads(request.param)
    torch.manual_seed(0)
    yield
    set_threads(threads)


def in_steps(operation: Operation, shape: tuple[int, ...], rows: list[int], chunk: int, keep: int = 1) -> list[Tensor]:
    """Compute rows of an operation, `chunk` tokens of each in a step; only every `keep`th border has a block."""
    per_row = -(-max(LENGTHS) // SIZE)
    (memory,) = StateMemory(CPU).allocate(State((StateTensor(shape, "float32"),)), 1 + 4 * per_row, SIZE, torch.float32)
    memory.fill_(torch.nan)
    blocks = torch.arange(1, 1 + len(LENGTHS) * per_row).view(len(LENGTHS), per_row).int()
    found: list[list[Tensor]] = [[] for _ in rows]
    for start in range(0, max(LENGTHS[row] for row in rows), chunk):
        here = [place for place, row in enumerate(rows) if start < LENGTHS[row]]
        count = torch.tensor([min(chunk, LENGTHS[rows[place]] - start) for place in here])
        table = blocks[[rows[place] for place in here]].clone()
        for line, number in zip(table, count.tolist(), strict=True):
            last = (start + number - 1) // SIZE
            line[[b for b in range(start // SIZE, last) if (b + 1) % keep and b != (start - 1) // SIZE]] = 0
        plan = StatePlan(CPU)
        plan.place(Layout(count.cumsum(0) - count, torch.full_like(count, start), count, table, SIZE))
        tokens = [torch.arange(n) + start + sum(LENGTHS[: rows[p]]) for p, n in zip(here, count.tolist(), strict=True)]
        for place, part in zip(here, operation(torch.cat(tokens), memory, plan).split(count.tolist()), strict=True):
            found[place].append(part)
    return [torch.cat(parts) for parts in found]


def check(operation: Operation, shape: tuple[int, ...], expected: list[Tensor]) -> None:
    together = in_steps(operation, shape, [0, 1, 2, 3], 64)
    for ours, theirs in zip(together, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for chunk, keep in ((1, 1), (3, 1), (4, 2), (7, 3), (29, 1)):
        for row, ours in enumerate(in_steps(operation, shape, [0, 1, 2, 3], chunk, keep)):
            assert torch.equal(ours, together[row]), f"chunks of {chunk}"
        assert torch.equal(in_steps(operation, shape, [2], chunk, keep)[0], together[2]), "alone"


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("channels, kernel", [(7, 2), (16, 4), (96, 3), (300, 4)])
def test_causal_conv(kind: Any, channels: int, kernel: int, bias: bool) -> None:
    x, weight = torch.randn(sum(LENGTHS), channels), torch.randn(channels, kernel)
    offset = torch.randn(channels) if bias else None
    expected = [
        F.silu(F.conv1d(F.pad(part.T, (kernel - 1, 0))[None], weight[:, None], offset, groups=channels)[0].T)
        for part in x.split(LENGTHS)
    ]
    taps = weight.T.contiguous()
    check(
        lambda at, memory, plan: kind.causal_conv(x[at], taps, offset, memory, plan, "silu"),
        (kernel - 1, channels),
        expected,
    )


@pytest.mark.parametrize("heads, head_dim, groups, width", [(4, 6, 2, 7), (2, 16, 2, 5), (1, 80, 1, 16), (6, 64, 3, 9)])
@pytest.mark.parametrize("alone", [False, True], ids=["heads fade", "elements fade"])
def test_selective_scan(kind: Any, heads: int, head_dim: int, groups: int, width: int, alone: bool) -> None:
    total, each = sum(LENGTHS), (heads, head_dim) if alone else (heads,)
    x, dt, bias, skip = (
        torch.randn(total, heads, head_dim),
        torch.randn(total, *each),
        torch.randn(each),
        torch.randn(each),
    )
    a = -torch.rand(heads, width, head_dim) if alone else -torch.rand(heads)
    b, c = torch.randn(2, total, groups, width)
    expected = []
    for row in torch.arange(total).split(LENGTHS):
        state = torch.zeros(heads, width, head_dim)
        for token in row:
            into, out = (part[token].repeat_interleave(heads // groups, 0) for part in (b, c))
            step = F.softplus(dt[token] + bias).clamp(0.3, 2.0).view(heads, 1, -1)
            state = torch.exp(step * a.view(heads, -1, a.shape[-1] if alone else 1)) * state
            state = state + into[:, :, None] * (step * x[token][:, None])
            expected.append(torch.einsum("hnp,hn->hp", state, out) + skip.view(heads, -1) * x[token])
    fading = Fading(a, bias, (0.3, 2.0))
    check(
        lambda at, memory, plan: kind.selective_scan(
            x[at], dt[at], b[at], c[at], fading, skip, memory=memory, plan=plan
        ),
        (heads, width, head_dim),
        list(torch.stack(expected).split(LENGTHS)),
    )


def test_selective_scan_in_steps_of_one(kind: Any) -> None:
    heads, states, width = 3, 10, 20
    x, (b, c) = torch.randn(sum(LENGTHS), heads, width), torch.randn(2, sum(LENGTHS), heads, states)
    a, nothing = -torch.rand(heads), torch.zeros(heads)
    expected = []
    for row in torch.arange(sum(LENGTHS)).split(LENGTHS):
        age = torch.arange(len(row))[:, None] - torch.arange(len(row))  # of key behind query
        left = torch.where(age >= 0, torch.exp(a[:, None, None] * age), 0.0)
        expected.append(torch.einsum("hqk,qhn,khn,khp->qhp", left, c[row], b[row], x[row]))
    check(
        lambda at, memory, plan: kind.selective_scan(
            x[at], None, b[at], c[at], Fading(a), nothing, memory=memory, plan=plan
        ),
        (heads, states, width),
        expected,
    )


@pytest.mark.parametrize(
    "key_heads, value_heads, key_dim, value_dim", [(2, 4, 8, 6), (3, 3, 5, 80), (1, 2, 16, 16), (1, 1, 40, 64)]
)
@pytest.mark.parametrize("alone", [False, True], ids=["heads fade", "keys fade"])
def test_gated_delta(kind: Any, key_heads: int, value_heads: int, key_dim: int, value_dim: int, alone: bool) -> None:
    total, group, each = sum(LENGTHS), value_heads // key_heads, (value_heads, key_dim) if alone else (value_heads,)
    q, k = torch.randn(2, total, key_heads, key_dim)
    v, dt, beta = torch.randn(total, value_heads, value_dim), torch.randn(total, *each), torch.randn(total, value_heads)
    a, bias = -torch.rand(value_heads), torch.randn(each)
    keys, queries = (F.normalize(part, dim=-1).repeat_interleave(group, 1) for part in (k, q))
    expected = []
    for row in torch.arange(total).split(LENGTHS):
        state = torch.zeros(value_heads, key_dim, value_dim)
        for token in row:
            steps = F.softplus(dt[token] + bias).view(value_heads, -1, 1)
            state = state * torch.exp(a[:, None, None] * steps)
            wrong = v[token] - torch.einsum("hkv,hk->hv", state, keys[token])
            state = state + torch.einsum("h,hv,hk->hkv", 1.5 * beta[token].sigmoid(), wrong, keys[token])
            expected.append(torch.einsum("hkv,hk->hv", state, queries[token]) / key_dim**0.5)
    fading = Fading(a, bias)
    check(
        lambda at, memory, plan: kind.gated_delta(
            q[at], k[at], v[at], dt[at], beta[at], fading, 1.5, memory=memory, plan=plan
        ),
        (value_heads, key_dim, value_dim),
        list(torch.stack(expected).split(LENGTHS)),
    )


@pytest.mark.parametrize("width", [7, 80])
def test_rg_lru(kind: Any, width: int) -> None:
    (x, opening, keeping), rates = torch.randn(3, sum(LENGTHS), width), -torch.rand(width)
    expected = []
    for row in torch.arange(sum(LENGTHS)).split(LENGTHS):
        state = torch.zeros(width)
        for token in row:
            fade = torch.exp(rates * keeping[token].sigmoid())
            root = torch.ones(width) if token == row[0] else (1 - fade**2) ** 0.5
            state = fade * state + root * opening[token].sigmoid() * x[token]
            expected.append(state)
    check(
        lambda at, memory, plan: kind.rg_lru(x[at], opening[at], keeping[at], rates, memory, plan),
        (width,),
        list(torch.stack(expected).split(LENGTHS)),
    )


@pytest.mark.parametrize(
    "x_dtype, dtype",
    [(torch.float32,) * 2, (torch.float32, torch.bfloat16), (torch.bfloat16,) * 2, (torch.float32, torch.float16)],
)
@pytest.mark.parametrize("order", ["gate_first", "norm_first"])
@pytest.mark.parametrize("shape", [(5, 3, 7), (5, 2, 96), (5, 40)], ids=str)
def test_gate(kind: Any, shape: tuple[int, ...], order: Any, x_dtype: torch.dtype, dtype: torch.dtype) -> None:
    x, gate, weight = torch.randn(shape).to(x_dtype), torch.randn(shape).to(dtype), torch.randn(shape[1:]).to(dtype)
    opened, tolerance = F.silu(gate.float()), {} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-2}
    torch.testing.assert_close(kind.gate(x, gate, "silu"), (x * opened).to(dtype), **tolerance)
    for own in (weight, weight[0] if len(shape) == 3 else weight):
        normal = F.rms_norm(x.float() * (1 if order == "norm_first" else opened), shape[-1:], eps=1e-3) * own
        expected = normal * opened if order == "norm_first" else normal
        found = kind.gate(x, gate, "silu", own, 1e-3, order)
        torch.testing.assert_close(found, expected.to(dtype), **tolerance)
        assert torch.equal(kind.gate(x[2:3], gate[2:3], "silu", own, 1e-3, order), found[2:3])


def test_softplus_does_not_depend_on_its_company() -> None:
    x = 10 * torch.randn(70, 46)
    torch.testing.assert_close(softplus(x), F.softplus(x))
    for rows in (1, 3, 16, 33):
        assert torch.equal(softplus(x[:rows]), softplus(x)[:rows])
        assert torch.equal(softplus(x[-rows:]), softplus(x)[-rows:])


@pytest.mark.parametrize("width", [1, 2, 3, 8, 13])
def test_fold_adds_up(width: int) -> None:
    x = torch.randn(5, width)
    torch.testing.assert_close(fold(x), x.sum(-1))
