"""An engine that answers at once, refuses, breaks or dies, as its model's name says: python -m tests.benchmarks.fake_engine"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from benchmarks.adapters.protocol import Asked, Clock, serve


class FakeEngine:
    def __init__(self) -> None:
        self.model = ""

    def load(self, model: str, options: dict[str, Any]) -> None:
        self.model = model
        print("this is not part of the conversation")
        os.write(1, b"nor is this\n")
        if model == "refused":
            raise ValueError(f"{options['engine']} cannot be had")

    def prepare(self, requests: Sequence[Asked]) -> None:
        """Nothing helps."""

    def run(self, requests: Sequence[Asked]) -> Clock:
        if self.model == "dies":
            os.write(2, b"the last words\n")
            os._exit(3)
        clock = Clock(len(requests))
        for index, (prompt, num_output) in enumerate(requests):
            for _ in range(num_output - (self.model == "stops early")):
                clock.saw(index, prompt[:1])
        return clock

    def close(self) -> None:
        """Nothing is held."""


if __name__ == "__main__":
    serve(FakeEngine())
