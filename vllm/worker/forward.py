"""The two computations of a model: hidden states of a step's tokens, then logits of some of them.

Where all their operations are kernels they are recorded once and run with one call each; otherwise the model's modules
are called.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vllm import ops
from vllm.layers.embedding import Head
from vllm.layers.step import Step
from vllm.layers.transformer import Transformer
from vllm.ops import Recording
from vllm.ops.attention import Form
from vllm.sampling.rows import select


class HiddenStates:
    """A model that computes in buffers that stay where they are."""

    def __init__(self, model: Transformer, step: Step) -> None:
        """`step` holds as many tokens as a step can have; its content is written before each computation."""
        self.model = model
        self.step = step
        self._recordings: dict[Form, Recording] = {}
        if step.attention.recordable and not model.is_complete:
            most = len(step.token_ids)
            self._recordings = ops.record_steps(lambda rows: model(step.first(rows)), most, step.token_ids.device)

    @property
    def output(self) -> Tensor | None:
        """Where the results of every step are, if that is always the same place.  [T, D]"""
        recording = self._recordings.get(Form.ANY)
        return recording.output if recording else None

    def compute(self, num_tokens: int) -> Tensor:
        """Compute the step's first tokens.  The result may be overwritten by the next call.  -> [T, D]"""
        forms = {plan.form for plan in self.step.plans}
        if len(forms) > 1:
            forms.discard(Form.ANY)
        form = forms.pop() if len(forms) == 1 else Form.ANY if not forms else None
        recording = self._recordings.get(form) if form else None
        if recording and num_tokens <= recording.most:
            return recording.run(num_tokens)
        return self.model(self.step.first(num_tokens))


class Logits:
    """The head of a model that generates, for the rows whose next token somebody waits for."""

    def __init__(self, head: Head, hidden: HiddenStates, max_rows: int) -> None:
        """Logits are computed for at most `max_rows` tokens at a time."""
        self.head = head
        self._rows = torch.zeros(max_rows, dtype=torch.int64)
        self._recording: Recording | None = None
        if (every := hidden.output) is not None:
            self._recording = ops.record(lambda rows: head(ops.gather(every, self._rows[:rows])), max_rows)

    @property
    def is_gathered(self) -> bool:
        """Whether `greatest` is faster than to look for the greatest of all logits."""
        return self.head.is_gathered

    def greatest(self, hidden: Tensor, rows: list[int]) -> tuple[Tensor, Tensor]:
        """Find the greatest logit of some rows of the last hidden states, and its token.  -> [R], [R] int32"""
        return self.head.greatest(select(hidden, rows))

    def compute(self, hidden: Tensor, rows: list[int]) -> Tensor:
        """Compute the logits of some rows of the last hidden states; the next call overwrites them.  -> [R, V] float32"""
        if self._recording is None:
            return self.head(select(hidden, rows))
        self._rows[: len(rows)] = torch.tensor(rows)
        return self._recording.run(len(rows))
