"""The two computations of a model: hidden states of a step's tokens, then logits of some of them.

Where all their operations are kernels they are recorded once and run with one call each; otherwise the model's modules
are called.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vllm import ops
from vllm.layers.step import Step
from vllm.layers.transformer import Transformer
from vllm.sampling.rows import select


class Forward:
    """A model that computes in buffers that stay where they are."""

    def __init__(self, model: Transformer, step: Step, max_rows: int) -> None:
        """`step` holds as many tokens as a step can have; its content is written before each computation.  Logits are
        computed for at most `max_rows` tokens at a time."""
        self.model = model
        self.step = step
        self._hidden = self._logits = None
        self._rows = torch.zeros(max_rows, dtype=torch.int64)
        device = step.token_ids.device
        if step.attention.recordable and (hidden := ops.record(lambda: model(step), device)):
            every = hidden.output
            self._hidden = hidden
            self._logits = ops.record(lambda: model.logits(ops.gather(every, self._rows)), device)

    def hidden(self, num_tokens: int) -> Tensor:
        """Compute the step's first tokens.  The result may be overwritten by the next call.  -> [T, D]"""
        if self._hidden is None:
            return self.model(self.step.first(num_tokens))
        return self._hidden.run(num_tokens)

    def logits(self, hidden: Tensor, rows: list[int]) -> Tensor:
        """Compute the logits of some rows of `hidden`'s last result, which may be overwritten as it.  -> [R, V] float32"""
        if self._logits is None:
            return self.model.logits(select(hidden, rows))
        self._rows[: len(rows)] = torch.tensor(rows)
        return self._logits.run(len(rows))
