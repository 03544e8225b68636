"""transformers' `generate`: prompts of a workload as one batch, padded on the left, all run to the longest output.

A batch holds at most MOST_TOGETHER prompts; more wait for the one before.  Nobody leaves a batch early: that is what
`generate` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .protocol import Asked, Clock

MOST_TOGETHER = 32


class Engine:
    def __init__(self) -> None:
        self.model: Any = None

    def load(self, model: str, options: dict[str, Any]) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(options["threads"])
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16, **options.get("engine", {}))
        self.model.eval()

    def prepare(self, requests: Sequence[Asked]) -> None:
        """Nothing helps."""

    def run(self, requests: Sequence[Asked]) -> Clock:
        clock = Clock(len(requests))
        for first in range(0, len(requests), MOST_TOGETHER):
            self._run_batch(requests[first : first + MOST_TOGETHER], first, clock)
        return clock

    def close(self) -> None:
        self.model = None

    def _run_batch(self, requests: Sequence[Asked], first: int, clock: Clock) -> None:
        import torch

        longest = max(len(prompt) for prompt, _ in requests)
        ids = torch.zeros(len(requests), longest, dtype=torch.long)
        mask = torch.zeros(len(requests), longest, dtype=torch.long)
        for row, (prompt, _) in enumerate(requests):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        with torch.inference_mode():
            self.model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=max(num_output for _, num_output in requests),
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
                streamer=_Watch(requests, first, clock),
            )


class _Watch:
    """Receives the prompts first, then one token per row and step."""

    def __init__(self, requests: Sequence[Asked], first: int, clock: Clock) -> None:
        self.requests, self.first, self.clock = requests, first, clock
        self.step = -1

    def put(self, value: Any) -> None:
        if self.step >= 0:
            for row, (_, num_output) in enumerate(self.requests):
                if self.step < num_output:
                    self.clock.saw(self.first + row, [int(value[row])])
        self.step += 1

    def end(self) -> None:
        """Nothing is left to do."""
