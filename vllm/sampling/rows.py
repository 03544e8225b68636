"""Small helpers for picking rows of a step's logits, and the most likely tokens of each in one fixed order."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor


def top(logits: Tensor, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return each row's `count` largest logits and their tokens, best first, equal logits by lower token id.

    The order is part of the result: `topk` itself breaks ties by chance, and logits of a bfloat16 model tie often.

    [n, V] -> [n, count] float64, [n, count] int64
    """
    if count >= logits.shape[1]:
        ranked = torch.sort(logits, dim=-1, descending=True, stable=True)
        return host(ranked.values).astype(np.float64), host(ranked.indices)
    found, chosen = logits.topk(count + 1)  # one more, to see whether a tie crosses the border
    values, ids = host(found).astype(np.float64), host(chosen)
    tied = np.flatnonzero(values[:, count - 1] == values[:, count])
    values, ids = values[:, :count], ids[:, :count]
    for row in tied:
        values[row], ids[row] = _settle_tie(logits[row], count, float(values[row, -1]))
    order = np.lexsort((ids, -values))
    return np.take_along_axis(values, order, axis=1), np.take_along_axis(ids, order, axis=1)


def _settle_tie(logits: Tensor, count: int, border: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the logits above the border and then those on it from the lowest token id on, `count` in all, with ids."""
    above = torch.nonzero(logits > border).flatten()
    level = torch.nonzero(logits == border).flatten()[: count - len(above)]
    ids = torch.cat([above, level])
    return host(logits[ids]), host(ids)


def select(tensor: Tensor, rows: np.ndarray) -> Tensor:
    """Return the rows of a tensor: a view where they lie side by side, else a copy.  [R, …], [n] ascending -> [n, …]"""
    first, last = int(rows[0]), int(rows[-1])
    if last - first + 1 == len(rows):
        return tensor[first : last + 1]
    return tensor[torch.from_numpy(rows).to(tensor.device)]


def chunks(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Cut an array of rows into pieces of at most `size`."""
    for first in range(0, len(rows), size):
        yield rows[first : first + size]


def host(tensor: Tensor) -> np.ndarray:
    """Return a tensor as a numpy array; on the CPU without a copy."""
    return tensor.cpu().numpy()
