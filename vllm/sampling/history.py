"""The sequences behind the rows of a step: views into the worker's token table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class History:
    """Row r's sequence is tokens[slots[r], :lengths[r]]; its first num_prompt[r] tokens are the prompt."""

    tokens: Tensor
    """[num_slots, L]"""
    slots: np.ndarray
    """[R] int64"""
    lengths: np.ndarray
    """[R] int64"""
    num_prompt: np.ndarray
    """[R] int64"""

    @property
    def num_output(self) -> np.ndarray:
        """The number of output tokens so far.  [R]"""
        return self.lengths - self.num_prompt

    def prompt(self, row: int) -> list[int]:
        return self.tokens[int(self.slots[row]), : int(self.num_prompt[row])].tolist()

    def output(self, row: int, last: int | None = None) -> list[int]:
        """Return a row's output tokens, or only the `last` ones of them."""
        start, stop = int(self.num_prompt[row]), int(self.lengths[row])
        if last is not None:
            start = max(start, stop - last)
        return self.tokens[int(self.slots[row]), start:stop].tolist()

    def occurrences(self, rows: np.ndarray, starts: np.ndarray, vocab_size: int) -> Tensor:
        """Return, for each token of the rows from `starts` on, its place in the flattened logits.  [n], [n] -> [N]

        Tokens outside the vocabulary (placeholders of media) have no logit and are left out.
        """
        sizes = self.lengths[rows] - starts
        owner = np.repeat(np.arange(len(rows)), sizes)
        column = np.arange(len(owner)) - np.repeat(np.cumsum(sizes) - sizes, sizes) + starts[owner]
        row = torch.from_numpy(rows[owner]).to(self.tokens.device)
        slot = torch.from_numpy(self.slots[rows][owner]).to(self.tokens.device)
        found = self.tokens[slot, torch.from_numpy(column).to(self.tokens.device)].long()
        known = (found >= 0) & (found < vocab_size)
        return (row * vocab_size + found)[known]
