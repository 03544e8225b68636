"""Every operation gives a row the same bits whatever rows stand beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from tests.ops.conftest import matrix_of
from vllm import ops
from vllm.ops.activations import activation, gated_activation
from vllm.ops.matrix import DenseMatrix
from vllm.ops.moe import Routing
from vllm.ops.native import set_threads
from vllm.ops.per_head import per_head

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ROWS = 70


@pytest.fixture(autouse=True, params=[1, 2], ids=["1 thread", "2 threads"])
def _a_seed(request: pytest.FixtureRequest) -> Iterator[None]:
    threads = torch.get_num_threads()
    set_threads(request.param)
    torch.manual_seed(0)
    with torch.inference_mode():
        yield
    set_threads(threads)


def check(operation: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """The first rows, the last rows and each row alone give what they give together."""
    together = operation(x)
    for rows in (1, 2, 3, 4, 5, 7, 8, 11, 12, 15, 16, 17, 31, 33, 47, 64, 65, 69):
        assert torch.equal(operation(x[:rows]), together[:rows]), f"the first {rows} rows"
        assert torch.equal(operation(x[-rows:]), together[-rows:]), f"the last {rows} rows"
        assert torch.equal(operation(x[rows : rows + 1]), together[rows : rows + 1]), f"row {rows} alone"


def cancelling(rows: int, width: int) -> Tensor:
    """Rows whose halves are nearly equal: with a matrix whose halves are opposite, any other order of sums shows."""
    half = torch.randn(rows, width // 2)
    return torch.cat((half, half + 0.01 * torch.randn_like(half), torch.randn(rows, width % 2)), dim=1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "width, height",
    [(16, 16), (18, 7), (33, 3), (32, 1), (32, 96), (32, 128), (64, 64), (72, 151), (128, 32), (1536, 64)],
)
def test_linear(width: int, height: int, dtype: torch.dtype) -> None:
    half = torch.randn(height, width // 2)
    weight = torch.cat((half, -half, torch.randn(height, width % 2)), dim=1).to(dtype)
    bias = torch.randn(height).to(dtype)
    for kind in (ops.matrix, DenseMatrix):
        check(matrix_of(weight, kind=kind).multiply, cancelling(ROWS, width).to(dtype))
        check(matrix_of(weight, bias, kind=kind).multiply, cancelling(ROWS, width).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [8, 33, 80, 896])
def test_norms(width: int, dtype: torch.dtype) -> None:
    x, weight, bias = torch.randn(ROWS, width).to(dtype), torch.randn(width).to(dtype), torch.randn(width).to(dtype)
    check(lambda x: ops.rms_norm(x, weight, 1e-6), x)
    check(lambda x: ops.rms_norm(x, weight, 1e-6, offset=1.0), x)
    check(lambda x: ops.layer_norm(x, weight, bias, 1e-5), x)
    check(lambda x: ops.layer_norm(x, None, None, 1e-5), x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ops.ACTIVATIONS)
def test_activations(name: str, dtype: torch.dtype) -> None:
    x = (4 * torch.randn(ROWS, 46)).to(dtype)
    check(lambda x: activation(x, name), x)
    check(lambda x: gated_activation(x, name), x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary(interleaved: bool, dtype: torch.dtype) -> None:
    heads = torch.randn(ROWS, 3 * 18).to(dtype)
    table = torch.randn(500, 10)
    positions = torch.randint(500, (ROWS,)).tolist()
    by_content = {tuple(row.tolist()): position for row, position in zip(heads, positions, strict=True)}

    def rotate(x: Tensor) -> Tensor:
        at = torch.tensor([by_content[tuple(row.tolist())] for row in x])
        x = x.view(-1, 3, 18)
        q, k = ops.rotary(x.clone(), x[:, :1].clone(), table, at, interleaved)
        assert torch.equal(q[:, :1], k)
        return q.flatten(1)

    check(rotate, heads)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("renormalize", [False, True])
def test_experts(renormalize: bool, dtype: torch.dtype) -> None:
    router = matrix_of(torch.randn(5, 24).to(dtype))
    gate_up = [matrix_of(torch.randn(2 * 20, 24).to(dtype), gated=True) for _ in range(5)]
    down = [matrix_of(torch.randn(24, 20).to(dtype)) for _ in range(5)]

    def mixture(x: Tensor) -> Tensor:
        weights, ids = ops.route(router.multiply(x), Routing(2, renormalize))
        return ops.moe(x, weights, ids, gate_up, down, activation="silu")

    check(mixture, torch.randn(ROWS, 24).to(dtype))


@pytest.mark.parametrize("experts", [5, 12, 64])
@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("renormalize", [False, True])
def test_routers(renormalize: bool, sigmoid: bool, experts: int) -> None:
    every = Routing(experts, renormalize, sigmoid, scale=2.5)
    correction = torch.rand(experts) - 0.5
    check(lambda x: torch.cat(ops.route(x, every, correction), dim=1), 3 * torch.randn(ROWS, experts))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("heads, width, height", [(1, 16, 33), (4, 24, 12), (3, 7, 5), (16, 128, 512)])
def test_products_per_head(heads: int, width: int, height: int, dtype: torch.dtype) -> None:
    half = torch.randn(heads, width // 2, height)
    weight = torch.cat((half, -half, torch.randn(heads, width % 2, height)), dim=1).to(dtype)
    x = cancelling(ROWS * heads, width).view(ROWS, heads, width).to(dtype)
    check(lambda x: per_head(x, weight), x)
