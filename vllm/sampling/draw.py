"""Drawing: from logits to a token by min_p, top_k, top_p and one uniform number per row.

A row without top_k and top_p needs no order: its draw is an inverse CDF in order of token ids.  Any other row is drawn
among its most likely tokens, best first.  Their number is not known beforehand for top_p, so a few are looked at first,
and only rows whose share of the mass is not reached go on with more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vllm.sampling.mass import Mass, first_above
from vllm.sampling.rows import chunks, select, top

_WIDTHS = (256, 8192)
"""How many most likely tokens are looked at before the whole vocabulary is sorted."""


@dataclass(frozen=True, slots=True)
class Scores:
    """The logits of a step, ready to be drawn from but for temperature and filters."""

    logits: Tensor
    """[R, V]"""
    peaks: np.ndarray
    """[R] the rows' greatest logits; finite where drawn"""
    controls: np.ndarray
    """[R] the rows' sampling parameters; temperatures above 0 where drawn"""

    def fill(self, mass: Mass, rows: np.ndarray) -> np.ndarray:
        """Fill the buffer with the rows' weights and return the sums of their blocks.  [n] -> [n, blocks]"""
        controls = self.controls[rows]
        return mass.fill(select(self.logits, rows), self.peaks[rows], controls["temperature"], controls["min_p"])

    def bounds(self, rows: np.ndarray) -> np.ndarray:
        """Return how many tokens top_k leaves.  [n] -> [n]"""
        top_k, vocab_size = self.controls["top_k"][rows], self.logits.shape[1]
        return np.where(top_k > 0, np.minimum(top_k, vocab_size), vocab_size)

    def ordered(self, rows: np.ndarray) -> np.ndarray:
        """Return which of the rows need their tokens in order of likelihood.  [n] -> [n] bool"""
        return (self.controls["top_p"][rows] < 1.0) | (self.bounds(rows) < self.logits.shape[1])


@dataclass(frozen=True, slots=True)
class Survivors:
    """What min_p, top_k and top_p leave of some rows."""

    rows: np.ndarray
    """[n]"""
    ids: np.ndarray
    """[n, K] tokens, best first"""
    weights: np.ndarray
    """[n, K] unnormalised probabilities; 0 where dropped"""


def draw(scores: Scores, rows: np.ndarray, uniforms: np.ndarray, mass: Mass) -> np.ndarray:
    """Draw a token for each of `rows` with one number in (0, 1) each.  [n] ascending, [n] -> [n] int64"""
    tokens = np.empty(len(rows), dtype=np.int64)
    ordered = scores.ordered(rows)
    for part in chunks(np.flatnonzero(~ordered), mass.num_rows):
        sums = scores.fill(mass, rows[part])
        tokens[part] = mass.pick(sums, uniforms[part])
    for part in chunks(np.flatnonzero(ordered), mass.num_rows):
        for group in _survivors(scores, rows[part], mass):
            index = part[np.searchsorted(rows[part], group.rows)]
            ends = np.cumsum(group.weights, axis=1)
            best = first_above(ends, uniforms[index] * ends[:, -1])
            tokens[index] = group.ids[np.arange(len(best)), best]
    return tokens


def keep_survivors(scores: Scores, rows: np.ndarray, mass: Mass) -> None:
    """Divide the logits of `rows` by their temperatures and set those of dropped tokens to -inf, in place.  [n]"""
    logits, temperature = scores.logits, scores.controls["temperature"]
    ordered = scores.ordered(rows)
    for part in chunks(rows[~ordered], mass.num_rows):
        scores.fill(mass, part)
        for row, weights in zip(part, mass.weights(len(part)), strict=True):
            logits[row] /= float(temperature[row])
            if scores.controls["min_p"][row] > 0:
                logits[row].masked_fill_(weights == 0, float("-inf"))
    for part in chunks(rows[ordered], mass.num_rows):
        for group in _survivors(scores, part, mass):
            for row, ids, weights in zip(group.rows, group.ids, group.weights, strict=True):
                kept = torch.from_numpy(ids[weights > 0]).to(logits.device)
                scaled = logits[row, kept] / float(temperature[row])
                logits[row] = float("-inf")
                logits[row, kept] = scaled


def _survivors(scores: Scores, rows: np.ndarray, mass: Mass) -> Iterator[Survivors]:
    """Yield the rows' survivors, in groups of rows that were settled with equally many tokens.  [n] ascending"""
    vocab_size = scores.logits.shape[1]
    totals = _totals(scores, rows, mass)
    for limit in (*_WIDTHS, vocab_size):
        bounds, top_p = scores.bounds(rows), scores.controls["top_p"][rows]
        width = int(min(limit, bounds.max()))
        values, ids = top(select(scores.logits, rows), width)
        weights = _weights(values, scores.controls[rows], bounds)
        ends = np.cumsum(weights, axis=1)
        whole = bounds == vocab_size  # top_p is a share of everything, else of what top_k leaves
        share = top_p * np.where(whole, totals, ends[:, -1])
        settled = (bounds <= width) | (weights[:, -1] == 0) | (whole & (ends[:, -1] >= share))
        weights[:, 1:][(top_p < 1.0)[:, None] & (ends[:, :-1] >= share[:, None])] = 0
        if settled.any():
            yield Survivors(rows[settled], ids[settled], weights[settled])
        rows, totals = rows[~settled], totals[~settled]
        if not len(rows):
            return


def _totals(scores: Scores, rows: np.ndarray, mass: Mass) -> np.ndarray:
    """Return the mass of the whole vocabulary after min_p; 0 for rows where top_k makes it irrelevant.  [n] -> [n]"""
    totals = np.zeros(len(rows))
    whole = scores.bounds(rows) == scores.logits.shape[1]
    if whole.any():
        totals[whole] = scores.fill(mass, rows[whole]).sum(axis=1)
    return totals


def _weights(values: np.ndarray, controls: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Return the unnormalised probabilities of logits in falling order, min_p and top_k applied.  [n, K] -> [n, K]"""
    weights = np.exp((values - values[:, :1]) / controls["temperature"][:, None])
    weights[weights < controls["min_p"][:, None]] = 0
    weights[np.arange(values.shape[1]) >= bounds[:, None]] = 0
    return weights
