"""Recurrences against their definitions, and the same bits however rows are cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vllm.kv_cache.spec import State, StateTensor
from vllm.ops.attention import Layout
from vllm.ops.native import set_threads
from vllm.ops.recurrent import causal_conv, fold, gated_delta, selective_scan, softplus
from vllm.ops.states import StateMemory, StatePlan

CPU = torch.device("cpu")
SIZE = 4
LENGTHS = (13, 1, 30, 8)
Operation = Callable[[slice, Tensor, StatePlan], Tensor]


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
@pytest.mark.parametrize("channels, kernel", [(7, 2), (16, 4), (96, 3)])
def test_causal_conv(channels: int, kernel: int, bias: bool) -> None:
    x, weight = torch.randn(sum(LENGTHS), channels), torch.randn(channels, kernel)
    offset = torch.randn(channels) if bias else None
    expected = [
        F.conv1d(F.pad(part.T, (kernel - 1, 0))[None], weight[:, None], offset, groups=channels)[0].T
        for part in x.split(LENGTHS)
    ]
    check(lambda at, memory, plan: causal_conv(x[at], weight, offset, memory, plan), (kernel - 1, channels), expected)


@pytest.mark.parametrize(
    "heads, head_dim, groups, width, fades", [(24, 1, 1, 16, 16), (4, 6, 2, 7, 1), (2, 9, 2, 5, 5)]
)
def test_selective_scan(heads: int, head_dim: int, groups: int, width: int, fades: int) -> None:
    total = sum(LENGTHS)
    x, dt, a = torch.randn(total, heads, head_dim), torch.rand(total, heads), -torch.rand(heads, fades)
    b, c = torch.randn(2, total, groups, width)
    expected = []
    for row in torch.arange(total).split(LENGTHS):
        state = torch.zeros(heads, head_dim, width)
        for token in row:
            into, out = (part[token].repeat_interleave(heads // groups, 0) for part in (b, c))
            fade = torch.exp(dt[token][:, None] * a)[:, None]
            state = fade * state + torch.einsum("h,hp,hn->hpn", dt[token], x[token], into)
            expected.append(torch.einsum("hpn,hn->hp", state, out))
    check(
        lambda at, memory, plan: selective_scan(x[at], dt[at], a, b[at], c[at], memory, plan),
        (heads, head_dim, width),
        list(torch.stack(expected).split(LENGTHS)),
    )


@pytest.mark.parametrize("key_heads, value_heads, key_dim, value_dim", [(2, 4, 8, 6), (3, 3, 5, 8), (1, 2, 16, 16)])
def test_gated_delta(key_heads: int, value_heads: int, key_dim: int, value_dim: int) -> None:
    total, group = sum(LENGTHS), value_heads // key_heads
    q, k = torch.randn(2, total, key_heads, key_dim)
    v, (decay, beta) = torch.randn(total, value_heads, value_dim), torch.rand(2, total, value_heads)
    keys, queries = (F.normalize(part, dim=-1).repeat_interleave(group, 1) for part in (k, q))
    expected = []
    for row in torch.arange(total).split(LENGTHS):
        state = torch.zeros(value_heads, value_dim, key_dim)
        for token in row:
            state = state * decay[token][:, None, None]
            wrong = v[token] - torch.einsum("hvk,hk->hv", state, keys[token])
            state = state + torch.einsum("h,hv,hk->hvk", beta[token], wrong, keys[token])
            expected.append(torch.einsum("hvk,hk->hv", state, queries[token]) / key_dim**0.5)
    check(
        lambda at, memory, plan: gated_delta(q[at], k[at], v[at], decay[at], beta[at], memory, plan),
        (value_heads, value_dim, key_dim),
        list(torch.stack(expected).split(LENGTHS)),
    )


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
