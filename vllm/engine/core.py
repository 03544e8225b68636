"""The loop without text: decide → compute → account, the same in the caller's process and in one of its own."""

from __future__ import annotations

import contextlib
from collections import deque

import msgspec

from vllm.config import EngineConfig
from vllm.engine.executor import Executor, InProcessExecutor, Pending
from vllm.errors import EngineDeadError
from vllm.kv_cache.cache import KVCache
from vllm.messages import Batch, EngineRequest, EngineStats, Event
from vllm.scheduler.scheduler import Scheduler


class EngineCore:
    """Runs requests together, step by step, in the calling thread."""

    def __init__(self, config: EngineConfig, executor: Executor) -> None:
        self.config = config
        self.executor: Executor | None = executor
        self._inflight: deque[tuple[Batch, Pending]] = deque()
        self._num_step_tokens = 0
        self._has_failed = False
        self.restart()

    @classmethod
    def load(cls, config: EngineConfig, progress: bool = False) -> EngineCore:
        """Load a model.  Raises ConfigError or ModelError for what cannot work, before weights are read if it can."""
        if config.tensor_parallel_size == 1:
            return cls(config, InProcessExecutor(config, progress))
        from vllm.engine.ranks import ParallelExecutor

        return cls(config, ParallelExecutor(config, progress))

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

    def add(self, request: EngineRequest) -> None:
        """Queue a request.  Raises RequestError for one that can never run."""
        self._alive()
        self.scheduler.add(request)

    def step(self) -> list[Event]:
        """Take one step.  When its batch fails, that is raised; `retry` or `drop` must come next."""
        executor = self._alive()
        while len(self._inflight) < executor.depth and (batch := self.scheduler.schedule()):
            self._inflight.append((batch, executor.execute(batch)))
        if not self._inflight:
            return []
        batch, pending = self._inflight.popleft()
        try:
            result = pending.result()
        except BaseException:
            self._has_failed = True
            self._forget_inflight()
            raise
        self._num_step_tokens = batch.num_tokens
        return self.scheduler.account(batch, result)

    def retry(self, error: Exception) -> list[Event]:
        """After a batch that failed: find the row whose fault it was, and fail that one alone.

        Raises the error where it was no batch that failed: the books cannot be trusted then.
        """
        if not self._has_failed:
            raise error
        self._has_failed = False
        return self.scheduler.retry(f"{type(error).__name__}: {error}")

    def drop(self) -> list[str]:
        """After a step that was interrupted: end the requests of its batch, and return their ids."""
        if not self._has_failed:
            return []
        self._has_failed = False
        return self.scheduler.drop()

    def restart(self) -> None:
        """Forget every request and cached prefix, and go on with the model as it is loaded.

        A keyboard interrupt may come between any two instructions, so the books it leaves are not trusted.
        """
        executor = self._alive()
        self._forget_inflight()
        self._has_failed = False
        self.scheduler = Scheduler(executor.scheduler, _make_cache(self.config, executor))

    def stats(self) -> EngineStats:
        scheduler = self.scheduler
        return msgspec.structs.replace(
            scheduler.stats,
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting),
            cache_usage=scheduler.cache.usage,
            num_step_tokens=self._num_step_tokens,
        )

    def close(self) -> None:
        """Drop model, cache and requests.  It can't be used afterwards; torch keeps its number of threads."""
        if self.executor is not None:
            self.scheduler.abort_all()
            self.executor.stop()
            self.executor = None

    def _forget_inflight(self) -> None:
        """Wait for what is under way, and forget what comes of it."""
        while self._inflight:
            _, pending = self._inflight.popleft()
            with contextlib.suppress(Exception):
                pending.result()

    def _alive(self) -> Executor:
        if self.executor is None:
            raise EngineDeadError("the engine was closed; make a new one")
        return self.executor


def _make_cache(config: EngineConfig, executor: Executor) -> KVCache:
    return KVCache(
        executor.groups,
        executor.plan.num_blocks,
        config.cache.block_size,
        executor.scheduler.max_num_batched_tokens,
        config.cache.prefix_caching,
    )
