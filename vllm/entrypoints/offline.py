"""Running requests to their ends in the calling thread, with a bar."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Any

from tqdm import tqdm

from vllm.engine.llm_engine import LLMEngine
from vllm.engine.output_processor import Output
from vllm.errors import ConfigError
from vllm.garbage import old_objects_spared
from vllm.messages import EngineRequest
from vllm.outputs import RequestOutput

Bar = bool | Callable[..., Any]
"""Whether to show progress; a callable makes the bar, as tqdm does."""


class Runs:
    """Runs requests of one engine.  Calls from several threads run one after the other."""

    def __init__(self, engine: LLMEngine) -> None:
        self.engine = engine
        self._ids = itertools.count()
        self._turn = threading.RLock()

    def ids(self, count: int) -> list[str]:
        """Return names for new requests."""
        return [str(next(self._ids)) for _ in range(count)]

    def run(self, requests: Sequence[EngineRequest], bar: Bar) -> list[Output]:
        """Queue all, step until all are finished; return their last outputs, in order.

        Whatever interrupts it leaves nothing behind.
        """
        engine = self.engine
        finished: dict[str, Output] = {}
        with self._turn, old_objects_spared():
            try:
                for request in requests:
                    engine.add(request)
                with _Progress(len(requests), bar) as progress:
                    while engine.has_work:
                        for output in engine.step():
                            finished[output.request_id] = output
                            progress.show(output)
            except KeyboardInterrupt:
                engine.restart()
                raise
            finally:
                engine.abort_request([request.id for request in requests if request.id not in finished])
        return [finished[request.id] for request in requests]


class _Progress:
    """The bar that people know, with tokens per second."""

    def __init__(self, total: int, show: Bar) -> None:
        make = show if callable(show) else tqdm
        self.bar = make(
            total=total,
            desc="Processed prompts",
            disable=not show,
            dynamic_ncols=True,
            postfix=f"est. speed input: {0:.2f} toks/s, output: {0:.2f} toks/s",
        )
        self.num_input = self.num_output = 0

    def show(self, output: Output) -> None:
        self.num_input += len(output.prompt_token_ids or [])
        if isinstance(output, RequestOutput):
            self.num_output += sum(len(completion.token_ids) for completion in output.outputs)
        if elapsed := self.bar.format_dict["elapsed"]:
            speeds = (self.num_input / elapsed, self.num_output / elapsed)
            self.bar.set_postfix_str("est. speed input: {:.2f} toks/s, output: {:.2f} toks/s".format(*speeds), False)
        self.bar.update()

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: Any) -> None:
        self.bar.close()


def refuse(**given: object) -> None:
    """Refuse arguments of the interface whose feature is not there."""
    for name, value in given.items():
        if value:
            raise ConfigError(f"{name} is not supported by this version; leave it out")
