"""Where batches are computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from vllm.config import EngineConfig, SchedulerConfig
from vllm.kv_cache.spec import CacheGroup
from vllm.messages import Batch, StepOutput
from vllm.ops.parallel import ALONE
from vllm.worker.load import load
from vllm.worker.memory import MemoryPlan


class Pending(Protocol):
    """A batch under way."""

    def result(self) -> StepOutput:
        """Wait for the batch, and return what came of it or raise what went wrong."""


class Executor(Protocol):
    """Computes batches, in the order in which they are given."""

    depth: int
    """How many batches are best under way: with 2 the next one is decided and given while one is computed."""
    plan: MemoryPlan
    groups: tuple[CacheGroup, ...]
    """Whose blocks the scheduler gives out."""
    scheduler: SchedulerConfig

    def execute(self, batch: Batch) -> Pending:
        """Start to compute a batch."""

    def stop(self) -> None:
        """Free everything."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A batch that could not even be started."""

    error: BaseException

    def result(self) -> StepOutput:
        try:
            raise self.error
        finally:
            del self  # else the exception holds this frame, which holds the exception, and with it the model


class InProcessExecutor:
    """Computes in the calling thread; an exception reaches the caller as it is."""

    group = ALONE

    def __init__(self, config: EngineConfig, progress: bool = False, meeting: str = "") -> None:
        """`meeting` is where other processes of the model are met."""
        self.depth = 1 if config.device == "cpu" else 2  # another device works by itself
        loaded = load(config, progress, meeting=meeting)
        self.group, self.runner, self.plan = loaded.group, loaded.runner, loaded.plan
        self.groups, self.scheduler = loaded.groups, loaded.scheduler

    def execute(self, batch: Batch) -> Pending:
        try:
            return self.runner.execute(batch)
        except BaseException as error:  # an interrupt too: the step did not happen
            return Failed(error)

    def stop(self) -> None:
        """Drop model and cache."""
        del self.runner
