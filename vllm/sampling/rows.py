"""Small helpers for picking rows of a step's logits, and the most likely tokens of each in one fixed order."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from vllm.ops.staging import sent


def greatest(logits: Tensor) -> tuple[list[int], list[float]]:
    """Return each row's token with the greatest logit, of equal ones the lowest, and that logit.  [R, V] -> [R], [R]

    A row with NaN has NaN for its greatest, so that this one pass also tells whether a row is sound.

    On the CPU it is numpy's: 7 µs for a vocabulary of 152k where torch's argmax and max take 80 (measured, AVX-512).
    """
    rows = host(logits)
    tokens = rows.argmax(axis=1).tolist()
    return tokens, [rows.item(row, token) for row, token in enumerate(tokens)]


def top(logits: Tensor, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return each row's `count` largest logits and their tokens, best first, equal logits by lower token id.

    The order is part of the result: logits of a bfloat16 model tie often.  [n, V] -> [n, count] float64, int64
    """
    count = min(count, logits.shape[1])
    ids = np.stack([_most_likely(row, count) for row in host(logits)])
    values = np.take_along_axis(host(logits), ids, axis=1)
    return values.astype(np.float64), ids


def _most_likely(row: np.ndarray, count: int) -> np.ndarray:
    """Return the tokens with the `count` greatest logits, best first.  [V] float32 -> [count] int64

    Their keys are sorted: logits as integers that fall as the logit rises, and behind them the ids.  numpy sorts 152k
    of them in 0.6 ms, and finds the border of the `count` greatest in 0.1 ms, where torch's stable sort takes 25 ms and
    its topk 0.2 to 0.9 ms (measured, AVX-512).
    """
    if count < len(row):
        border = np.partition(row, len(row) - count)[-count]
        ids = np.flatnonzero(~(row < border))  # with all that tie at the border; and where it is NaN, with all
    else:
        ids = np.arange(len(row))
    bits = (row[ids] + np.float32(0.0)).view(np.uint32)  # -0.0 becomes 0.0
    falling = np.where(bits >> 31, bits, bits ^ np.uint32(0x7FFFFFFF))
    keys = falling.astype(np.uint64) << np.uint64(32) | ids.astype(np.uint64)
    keys.sort()
    return (keys[:count] & np.uint64(0xFFFFFFFF)).astype(np.int64)


def select(tensor: Tensor, rows: np.ndarray | list[int]) -> Tensor:
    """Return the rows of a tensor: a view where they lie side by side, else a copy.  [R, …], [n] ascending -> [n, …]"""
    if len(rows) == len(tensor):
        return tensor
    first, last = int(rows[0]), int(rows[-1])
    if last - first + 1 == len(rows):
        return tensor[first : last + 1]
    return tensor[sent(np.asarray(rows), tensor.device)]


def chunks(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Cut an array of rows into pieces of at most `size`."""
    for first in range(0, len(rows), size):
        yield rows[first : first + size]


def host(tensor: Tensor) -> np.ndarray:
    """Return a tensor as a numpy array; on the CPU without a copy."""
    return tensor.cpu().numpy()
