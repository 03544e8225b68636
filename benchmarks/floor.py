"""The least time that a machine needs for a workload, from its rates and the shape's arithmetic.

A token costs 2 operations per weight of the body, 2 per weight of the head if its next token is wanted, and 4 per
layer, head, head element and earlier token in attention.  A step reads every weight once, and the keys and values of
what came before.  Work cannot be faster than its operations at the peak rate of the arithmetic, nor than its longest
chain of steps at the read bandwidth:

    floor = max(operations / peak, bytes of the longest chain / bandwidth)

What is shared by prompts counts once.  int8 is granted to attention too, which makes those floors a little low.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.shapes import Precision, Shape
from benchmarks.workloads import Request, Workload

CACHE_BYTES = 2  # of one element of the KV cache, in every precision


@dataclass(frozen=True, slots=True)
class Roof:
    """What the machine did in the same round."""

    read: float
    """Bytes per second from memory, all cores."""
    bf16: float
    """Operations per second, all cores; 0 where it could not be measured."""
    int8: float

    def peak(self, precision: Precision) -> float:
        return self.int8 if precision.arithmetic == "int8" else self.bf16


def floor(workload: Workload, measure: str, shape: Shape, precision: Precision, roof: Roof) -> float | None:
    """The best value that a measure could have: seconds, or tokens per second for a rate.

    None without a peak rate to reckon with.
    """
    if not roof.read or not roof.peak(precision):
        return None
    (longest,) = sorted(workload.requests, key=lambda request: request.num_output)[-1:]
    if measure == "decode_rate":
        return 1 / decode_seconds(longest, shape, precision, roof)
    if measure == "first_token":
        work = prompt_operations(workload.requests[:1], 0, shape)
        return seconds(work, chain_bytes(1, 0, shape, precision), precision, roof)
    work = prompt_operations(workload.requests, workload.shared, shape)
    work += output_operations(workload.requests, shape)
    chain = chain_bytes(longest.num_output, len(longest.prompt), shape, precision)
    total = seconds(work, chain, precision, roof)
    return workload.num_output / total if measure == "output_rate" else total


def prompt_operations(requests: Sequence[Request], shared: int, shape: Shape) -> float:
    """Operations up to the first token of every request; the `shared` leading tokens are computed once."""
    work = token_operations(0, shared, shape)
    for request in requests:
        work += token_operations(shared, len(request.prompt), shape) + 2 * shape.head_weights
    return work


def output_operations(requests: Sequence[Request], shape: Shape) -> float:
    """Operations from the first token of every request to its last; the last one is not computed on."""
    work = 0.0
    for request in requests:
        start, count = len(request.prompt), request.num_output - 1
        work += token_operations(start, start + count, shape) + 2 * count * shape.head_weights
    return work


def token_operations(start: int, end: int, shape: Shape) -> float:
    """Operations of the tokens at positions [start, end) in the body, each seeing itself and all before it."""
    seen = (end * (end + 1) - start * (start + 1)) / 2
    attention = 4 * shape.layers * shape.heads * shape.head_dim * seen
    return 2 * shape.body_weights * (end - start) + attention


def chain_bytes(num_steps: int, context: int, shape: Shape, precision: Precision) -> float:
    """Bytes that a sequence's steps read one after another: all weights each time, and its own growing context."""
    weights = num_steps * (shape.body_weights + shape.head_weights) * precision.weight_bytes
    positions = num_steps * context + num_steps * (num_steps - 1) / 2
    return weights + positions * cache_bytes(shape)


def cache_bytes(shape: Shape) -> int:
    """Bytes of keys and values of one token."""
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * CACHE_BYTES


def decode_seconds(request: Request, shape: Shape, precision: Precision, roof: Roof) -> float:
    """Seconds per token while one request alone is read on, over its whole output."""
    count = request.num_output - 1
    context = len(request.prompt) + 1
    return seconds(
        output_operations([request], shape), chain_bytes(count, context, shape, precision), precision, roof
    ) / max(count, 1)


def seconds(operations: float, num_bytes: float, precision: Precision, roof: Roof) -> float:
    return max(operations / roof.peak(precision), num_bytes / roof.read)
