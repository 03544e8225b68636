"""Where batches are computed."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Protocol

from vllm.config import EngineConfig
from vllm.kv_cache.spec import CacheGroup
from vllm.messages import Batch, StepOutput
from vllm.worker.load import load
from vllm.worker.memory import MemoryPlan


class Executor(Protocol):
    """Computes batches, in the order in which they are given."""

    plan: MemoryPlan
    groups: tuple[CacheGroup, ...]

    def execute(self, batch: Batch) -> Future[StepOutput]:
        """Start to compute a batch."""

    def stop(self) -> None:
        """Free everything."""


class InProcessExecutor:
    """Computes in the calling thread; an exception reaches the caller as it is."""

    def __init__(self, config: EngineConfig, progress: bool = False) -> None:
        self.runner, self.plan = load(config, progress)
        self.groups = self.runner.groups

    def execute(self, batch: Batch) -> Future[StepOutput]:
        future: Future[StepOutput] = Future()
        try:
            result = self.runner.execute(batch)
        except BaseException as error:  # an interrupt too: the step did not happen
            future.set_exception(error)
        else:
            future.set_result(result)
        return future

    def stop(self) -> None:
        """Drop model and cache."""
        del self.runner
