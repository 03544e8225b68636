"""Engines with `add_request` and `step`: ours, and vLLM, whose interface it speaks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .protocol import Asked, Clock


class SteppingEngine:
    """An `LLM` object whose engine is stepped here, so that the clock sees each token as it comes.

    `generate` of both engines does the same, and looks only at finished outputs.
    """

    def __init__(self) -> None:
        self.llm: Any = None
        self.num_requests = 0

    def prepare(self, requests: Sequence[Asked]) -> None:
        """Nothing helps."""

    def run(self, requests: Sequence[Asked]) -> Clock:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        engine = self.llm.llm_engine
        fields: dict[str, Any] = {
            "temperature": 0.0,
            "ignore_eos": True,
            "detokenize": False,
            "output_kind": RequestOutputKind.DELTA,
        }
        params = [SamplingParams(max_tokens=num_output, **fields) for _, num_output in requests]
        index_of: dict[str, int] = {}
        clock = Clock(len(requests))
        for index, (prompt, _) in enumerate(requests):
            name = str(self.num_requests)
            self.num_requests += 1
            index_of[name] = index
            engine.add_request(name, {"prompt_token_ids": prompt}, params[index])
        while engine.has_unfinished_requests():
            for output in engine.step():
                # vLLM adds characters of its own to the name it was given.
                clock.saw(index_of[output.request_id], output.outputs[0].token_ids)
        return clock
