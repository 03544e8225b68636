"""Penalties for tokens that occurred before, read from the token table; they keep no state of their own."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vllm.sampling.history import History


def apply_penalties(logits: Tensor, history: History, controls: np.ndarray, rows: np.ndarray) -> None:
    """Change, in place, the logits of tokens that the sequences of `rows` hold already.  [R, V], …, [R], [n]

    First the repetition penalty, for prompt and output: positive logits are divided by it, others multiplied.  Then
    the frequency penalty, once per occurrence, and the presence penalty, both for the output alone.
    """
    repeated = rows[controls["repetition"][rows] != 1.0]
    if len(repeated):
        _repetition(logits, history, controls, repeated)
    counted = rows[(controls["frequency"][rows] != 0.0) | (controls["presence"][rows] != 0.0)]
    if len(counted):
        _occurrence(logits, history, controls, counted)


def _repetition(logits: Tensor, history: History, controls: np.ndarray, rows: np.ndarray) -> None:
    keys = history.occurrences(rows, np.zeros_like(rows), logits.shape[1])
    penalty = _column(controls["repetition"], logits)[keys // logits.shape[1]]
    flat = logits.view(-1)
    seen = flat[keys]
    flat[keys] = torch.where(seen > 0, seen / penalty, seen * penalty)  # duplicates write the same value


def _occurrence(logits: Tensor, history: History, controls: np.ndarray, rows: np.ndarray) -> None:
    keys = history.occurrences(rows, history.num_prompt[rows], logits.shape[1])
    keys, counts = torch.unique(keys, return_counts=True)
    row = keys // logits.shape[1]
    loss = _column(controls["frequency"], logits)[row] * counts + _column(controls["presence"], logits)[row]
    flat = logits.view(-1)
    flat[keys] = flat[keys] - loss


def _column(values: np.ndarray, logits: Tensor) -> Tensor:
    return torch.from_numpy(values.astype(np.float32)).to(logits.device)
