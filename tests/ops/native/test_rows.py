"""The kernels for rows against their plain torch versions, which compute in float32 here."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from vllm.ops import native
from vllm.ops.native import rows
from vllm.ops.norms import layer_norm, rms_norm
from vllm.ops.rotary import rotary

BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
WIDTHS = [1, 2, 15, 16, 17, 46, 64, 80, 129, 896, 1500]
SPECIAL = [torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 1e30, -1e30, 100.0, -100.0, 88.5, -88.5]

examples = settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])


def near(got: Tensor, expected: Tensor) -> None:
    """Check a result against one in float32: as near as float32 sums are, and then rounded once."""
    if got.dtype == torch.float32:
        torch.testing.assert_close(got, expected, rtol=2e-6, atol=1e-6, equal_nan=True)
    else:  # half of the last bit, and a little where the float32 results lie on two sides of a tie
        torch.testing.assert_close(got.float(), expected, rtol=2**-8 + 1e-6, atol=1e-6, equal_nan=True)


def strided(x: Tensor) -> Tensor:
    """The same rows, with others' values between them."""
    wide = torch.full((len(x), x[0].numel() + 5), torch.nan, dtype=x.dtype)
    wide[:, : x[0].numel()] = x.flatten(1)
    return wide[:, : x[0].numel()].unflatten(1, x.shape[1:])


def check_company(function: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Each row alone gives what all give together, with one thread as with three."""
    together = function(x)
    for threads in (2, 3):
        native.set_threads(threads)
        assert torch.equal(function(x).nan_to_num(), together.nan_to_num())
    for row in range(len(x)):
        alone = function(x[row : row + 1])
        assert torch.equal(alone.nan_to_num(), together[row : row + 1].nan_to_num()), f"row {row}"
        assert torch.equal(alone.isnan(), together[row : row + 1].isnan())


@BOTH
@pytest.mark.parametrize("width", WIDTHS)
def test_norms_round_where_the_plain_ones_do(width: int, dtype: torch.dtype) -> None:
    x = (torch.randn(7, width) * 3 + 1).to(dtype)
    weight, bias, residual = (torch.randn(n, width).to(dtype) for n in (1, 1, 7))
    weight, bias = weight[0], bias[0]
    near(rows.layer_norm(strided(x), weight, bias, 1e-5), layer_norm(x.float(), weight, bias, 1e-5))
    near(rows.layer_norm(x, None, None, 1e-5), layer_norm(x.float(), None, None, 1e-5))
    for offset in (0.0, 1.0):
        for rest in (None, residual):
            got = rows.rms_norm(strided(x), weight, 1e-6, offset, rest)
            expected = rms_norm(x, weight, 1e-6, offset, rest)
            # the mean is summed up in another order: now and then a rounding falls to the other side
            same = (got == expected).float().mean()
            assert same > 0.9 or dtype == torch.float32
            torch.testing.assert_close(
                got,
                expected,
                rtol=2**-7 if dtype == torch.bfloat16 else 2e-6,
                atol=2e-2 if dtype == torch.bfloat16 else 2e-6,
            )


@BOTH
def test_norms_of_heads_are_norms_of_their_rows(dtype: torch.dtype) -> None:
    q = strided(torch.randn(9, 4, 24).to(dtype))
    weight = torch.randn(24).to(dtype)
    got = rows.rms_norm(q, weight, 1e-6)
    for head in range(4):
        assert torch.equal(got[:, head], rows.rms_norm(q[:, head].contiguous(), weight, 1e-6))


@BOTH
def test_norms_give_a_row_the_same_bits_in_any_company(dtype: torch.dtype) -> None:
    x, weight = torch.randn(13, 150).to(dtype), torch.randn(150).to(dtype)
    x[4, 3], x[9, 149] = torch.nan, torch.inf
    check_company(lambda x: rows.rms_norm(x, weight, 1e-6), x)
    check_company(lambda x: rows.rms_norm(x, weight, 1e-6, 1.0, x), x)
    check_company(lambda x: rows.layer_norm(x, weight, weight, 1e-6), x)
    for norm in (rows.rms_norm(x, weight, 1e-6), rows.layer_norm(x, weight, None, 1e-6)):
        assert norm[4].isnan().all() and norm[9, 149].isnan() and norm[[0, 1, 2, 3, 5]].isfinite().all()


@examples
@given(st.data())
def test_rotary_turns_pairs_and_leaves_the_rest(data: st.DataObject) -> None:
    dtype, interleaved = data.draw(st.sampled_from([torch.float32, torch.bfloat16])), data.draw(st.booleans())
    half, rest = data.draw(st.integers(1, 70)), data.draw(st.integers(0, 9))
    tokens, heads, kv_heads = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    q, k = (torch.randn(tokens, count, 2 * half + rest).to(dtype) for count in (heads, kv_heads))
    table, positions = torch.randn(30, 2 * half), torch.randint(30, (tokens,))
    got = rows.rotary(strided(q), strided(k), table, positions, interleaved)
    for mine, expected in zip(got, rotary(q.float(), k.float(), table, positions, interleaved), strict=True):
        if dtype == torch.float32:
            torch.testing.assert_close(mine, expected, rtol=1e-6, atol=1e-6)
        else:
            torch.testing.assert_close(mine.float(), expected, rtol=2**-8, atol=1e-6)


@BOTH
def test_rotary_gives_a_token_the_same_bits_in_any_company(dtype: torch.dtype) -> None:
    q, table = torch.randn(11, 3, 20).to(dtype), torch.randn(40, 20)
    places = torch.randint(40, (11,))

    def turn(tokens: Tensor) -> Tensor:
        return rows.rotary(q[tokens], q[tokens], table, places[tokens])[0].flatten(1)

    check_company(turn, torch.arange(11))


@examples
@given(st.data())
def test_lookups_sums_and_caps(data: st.DataObject) -> None:
    dtype, width = data.draw(st.sampled_from([torch.float32, torch.bfloat16])), data.draw(st.integers(1, 1100))
    table, count = torch.randn(12, width).to(dtype), data.draw(st.integers(1, 9))
    ids = torch.randint(10, (count,))
    assert torch.equal(rows.gather(strided(table), ids), table[ids])
    assert torch.equal(rows.gather(table, ids, 2.5, 2), table[ids + 2] * 2.5)
    x, y = table[:count], strided(torch.randn(12, width).to(dtype))[:count]
    assert torch.equal(rows.add(x, y), x + y)
    assert torch.equal(rows.multiply(x, y), x * y)
    assert torch.equal(rows.side_by_side(x, y[:, :7], x), torch.cat((x, y[:, :7], x), dim=1))
    far = strided(30 * x)
    near(rows.softcap(far.clone(), 5.0), 5 * torch.tanh(far.float() / 5))


def test_elements_that_are_not_finite_stay_so_alone() -> None:
    x = torch.randn(3, 40)
    x[1, 7], x[1, 8] = torch.nan, -torch.inf
    for got, plain in (
        (rows.add(x, x), x + x),
        (rows.softcap(x.clone(), 2.0), 2 * torch.tanh(x / 2)),
        (rows.gather(x, torch.arange(3), 3.0), 3 * x),
    ):
        near(got, plain)
