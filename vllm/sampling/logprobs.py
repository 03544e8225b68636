"""Log-probabilities of chosen and of most likely tokens, without sorting or normalising the vocabulary.

A log-probability is (logit - peak) - log(total mass), in float64; the rank of a token counts the logits above its own.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vllm.messages import TokenLogprobs
from vllm.sampling.mass import Mass
from vllm.sampling.rows import chunks, host, select, top


def token_logprobs(
    logits: Tensor, chosen: np.ndarray, counts: np.ndarray, mass: Mass, *, as_logits: bool = False
) -> list[TokenLogprobs]:
    """Return, per row, the chosen token's log-probability and rank and the `counts` most likely tokens' (-1: of all).

    [n, V], [n], [n] -> [n].  With `as_logits` the logits themselves stand in place of the log-probabilities.
    """
    found: list[TokenLogprobs] = []
    for part in chunks(np.arange(len(logits)), mass.num_rows):
        found += _logprobs(select(logits, part), chosen[part], counts[part], mass, as_logits)
    return found


def likely_tokens(
    logits: Tensor, counts: np.ndarray, temperature: np.ndarray, mass: Mass
) -> list[list[tuple[int, float]]]:
    """Return each row's `counts` most likely tokens with log-probabilities, best first, ties by lower token id.

    [n, V], [n], [n] -> [n].  Tokens without any probability are left out; a row with NaN gets none at all.
    """
    found: list[list[tuple[int, float]]] = []
    for part in chunks(np.arange(len(logits)), mass.num_rows):
        rows = select(logits, part)
        shift = _shift(rows, temperature[part], mass)
        values, ids = top(rows, int(counts[part].max()))
        scaled = values / temperature[part][:, None] - shift[:, None]
        for count, tokens, logprobs in zip(counts[part], ids.tolist(), scaled.tolist(), strict=True):
            pairs = zip(tokens[:count], logprobs[:count], strict=True)
            found.append([(token, logprob) for token, logprob in pairs if np.isfinite(logprob)])
    return found


def _logprobs(
    logits: Tensor, chosen: np.ndarray, counts: np.ndarray, mass: Mass, as_logits: bool
) -> list[TokenLogprobs]:
    """The same for as many rows as the buffer holds."""
    shift = np.zeros(len(logits)) if as_logits else _shift(logits, np.ones(len(logits)), mass)
    own = logits.gather(1, torch.from_numpy(chosen).to(logits.device)[:, None])[:, 0]
    ranks = 1 + mass.count_above(logits, own)
    logprobs = host(own).astype(np.float64) - shift
    best = _best(logits, counts, shift)
    return [
        TokenLogprobs(logprob, rank, ids, values)
        for logprob, rank, (ids, values) in zip(logprobs.tolist(), ranks.tolist(), best, strict=True)
    ]


def _best(logits: Tensor, counts: np.ndarray, shift: np.ndarray) -> list[tuple[list[int], list[float]]]:
    """Return each row's most likely tokens and their log-probabilities; only rows that want all of them are sorted."""
    best: list[tuple[list[int], list[float]]] = [([], []) for _ in counts]
    for rows, all_tokens in ((np.flatnonzero(counts > 0), False), (np.flatnonzero(counts == -1), True)):
        if not len(rows):
            continue
        width = logits.shape[1] if all_tokens else int(min(counts[rows].max(), logits.shape[1]))
        values, ids = top(select(logits, rows), width)
        values -= shift[rows, None]
        for row, row_ids, row_values in zip(rows, ids, values, strict=True):
            count = width if all_tokens else counts[row]
            best[row] = row_ids[:count].tolist(), row_values[:count].tolist()
    return best


def _shift(logits: Tensor, temperature: np.ndarray, mass: Mass) -> np.ndarray:
    """Return what to subtract from scaled logits to make them log-probabilities.  [n, V], [n] -> [n] float64"""
    peaks = host(logits.amax(dim=-1)).astype(np.float64)
    total = mass.fill(logits, peaks, temperature).sum(axis=1)
    return peaks / temperature + np.log(total)
