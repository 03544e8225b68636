"""Unnormalised probabilities of a few rows, summed by blocks: what draws and log-probabilities have in common.

    weights   [n, V]            exp((logit - peak) / temperature), float32, padded with zeros to whole blocks
    sums      [n, V / BLOCK]    float64; their total normalises, their running sum finds the block of a draw

A draw reads the sums and one block instead of a running sum over the vocabulary.  A block is summed on its own, so a
row's sums have the same bits alone and in any batch; a plain sum over [1, V] would be split among threads.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from vllm.sampling.rows import host

BLOCK = 512
_ROWS = 4  # 2.4 MB at a vocabulary of 152k: what one operation writes is still near when the next reads it
_PIECE = 32 * BLOCK
_LN2 = math.log(2)


class Mass:
    """A buffer for the weights of at most `num_rows` rows, used again and again."""

    def __init__(self, vocab_size: int, device: torch.device | str) -> None:
        self.num_rows = _ROWS
        self._vocab_size = vocab_size
        self._buffer = torch.zeros(_ROWS, -(-vocab_size // BLOCK) * BLOCK, device=device)

    def fill(
        self, logits: Tensor, peaks: np.ndarray, temperature: np.ndarray, min_p: np.ndarray | None = None
    ) -> np.ndarray:
        """Compute the rows' weights, dropping those below `min_p`, and return the sums of their blocks.

        [n, V], [n], [n], [n] -> [n, blocks] float64
        """
        weights = self.weights(len(logits))
        torch.sub(logits, self._column(peaks), out=weights)
        weights.div_(self._column(temperature * _LN2))
        self._exp2(len(logits))
        if min_p is not None and min_p.any():
            weights.mul_(weights >= self._column(min_p))
        return self._sums(len(logits))

    def weights(self, count: int) -> Tensor:
        """Return the weights of the first rows, as last filled.  [count, V]"""
        return self._buffer[:count, : self._vocab_size]

    def pick(self, sums: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        """Return the token at which each row's running sum of weights passes its share `uniforms` of the total.

        [n, blocks], [n] -> [n] int64
        """
        rows = np.arange(len(sums))
        ends = np.cumsum(sums, axis=1)
        target = uniforms * ends[:, -1]
        block = first_above(ends, target)
        start = np.where(block > 0, ends[rows, block - 1], 0.0)
        share = (target - start) / (ends[rows, block] - start)
        index = torch.from_numpy(block).to(self._buffer.device)
        blocks = self._buffer[: len(sums)].view(len(sums), -1, BLOCK)[
            torch.arange(len(sums), device=index.device), index
        ]
        inside = np.cumsum(host(blocks).astype(np.float64), axis=1)
        total = inside[:, -1]
        return block * BLOCK + first_above(inside, np.minimum(share * total, np.nextafter(total, 0.0)))

    def count_above(self, logits: Tensor, border: Tensor) -> np.ndarray:
        """Return the number of logits greater than each row's border.  [n, V], [n] -> [n] int64"""
        torch.gt(logits, border[:, None], out=self.weights(len(logits)))
        return self._sums(len(logits)).sum(axis=1).astype(np.int64)

    def _exp2(self, count: int) -> None:
        """Raise 2 to the first rows, in place.

        It takes a quarter of the time of torch's exp (measured, AVX-512), but torch computes the last elements of a
        thread's share in another way.  Pieces too short to be shared, and full of whole vectors, have no such elements.
        """
        self._buffer[:count, self._vocab_size :] = float("-inf")
        for piece in self._buffer[:count].view(-1).split(_PIECE):
            piece.exp2_()

    def _sums(self, count: int) -> np.ndarray:
        return host(self._buffer[:count].view(count, -1, BLOCK).sum(dim=-1)).astype(np.float64)

    def _column(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values.astype(np.float32)).to(self._buffer.device)[:, None]


def first_above(ends: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the index of each row's first entry greater than its target, in rows that never fall.  [n, m], [n] -> [n]"""
    return (ends <= target[:, None]).sum(axis=1)
