"""The engine: a loop of decide → compute → account, the same offline and online."""

from __future__ import annotations

from collections import deque
from typing import Any

from vllm.config import EngineArgs, EngineConfig, ModelConfig
from vllm.engine.executor import Executor, InProcessExecutor, Pending
from vllm.engine.output_processor import OutputProcessor
from vllm.engine.setup import resolve
from vllm.errors import EngineDeadError
from vllm.garbage import no_collections
from vllm.inputs.chat import ChatRenderer
from vllm.inputs.chat_template import find_templates
from vllm.inputs.prepare import Limits, Params, Preparer
from vllm.inputs.prompts import PromptType, parse_prompts
from vllm.inputs.tokenizer import Tokenizer
from vllm.kv_cache.cache import KVCache
from vllm.messages import Batch, EngineRequest
from vllm.outputs import RequestOutput
from vllm.scheduler.scheduler import Scheduler


class LLMEngine:
    """Runs requests together, step by step, in the calling thread.

    One `step` decides a batch, computes it and books the results; what it returns is news for users.
    """

    def __init__(self, config: EngineConfig, tokenizer: Tokenizer | None, executor: Executor) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.executor: Executor | None = executor
        model = config.model
        limits = Limits(model.vocab_size, model.max_model_len, model.max_logprobs)
        self.preparer = Preparer(tokenizer, limits, eos_token_ids=model.eos_token_ids, seed=model.seed)
        self._inflight: deque[tuple[Batch, Pending]] = deque()
        self._depth = 1
        self.restart()

    @classmethod
    def from_engine_args(cls, args: EngineArgs, progress: bool = False) -> LLMEngine:
        """Make an engine.  Raises ConfigError or ModelError for what cannot work, before weights are read if it can."""
        with no_collections():
            config, tokenizer = resolve(args)
            return cls(config, tokenizer, InProcessExecutor(config, progress))

    @property
    def model_config(self) -> ModelConfig:
        return self.config.model

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

    def chat_renderer(self) -> ChatRenderer:
        """Return what turns conversations into prompts, with the model's own templates."""
        model = self.config.model
        folder = model.tokenizer_path or model.path
        special = {} if self.tokenizer is None else self.tokenizer.special_tokens
        return ChatRenderer(model.model or "the default model", find_templates(folder), special, model.chat_template)

    def add(self, request: EngineRequest) -> None:
        """Queue a request."""
        self._alive()
        self.scheduler.add(request)
        self.outputs.add(request)

    def add_request(self, request_id: str, prompt: PromptType, params: Params, *, priority: int = 0) -> None:
        """Prepare and queue one prompt.  Raises RequestError for what is wrong with it."""
        (request,) = self.preparer.prepare(
            parse_prompts([prompt]), params, priority=[priority], request_ids=[request_id]
        )
        self.add(request)

    def has_unfinished_requests(self) -> bool:
        return self.has_work

    def abort_request(self, request_id: str | list[str]) -> None:
        """Forget requests, wherever they are."""
        for name in [request_id] if isinstance(request_id, str) else request_id:
            self.scheduler.abort(name)
            self.outputs.abort(name)

    def step(self) -> list[RequestOutput]:
        """Take one step.  An exception of the model, of the tokenizer or of a user's callable ends the step's requests
        and is raised."""
        executor = self._alive()
        while len(self._inflight) < self._depth and (batch := self.scheduler.schedule()):
            self._inflight.append((batch, executor.execute(batch)))
        if not self._inflight:
            return []
        batch, pending = self._inflight.popleft()
        try:
            result = pending.result()
        except BaseException:
            for name in self.scheduler.drop(batch):
                self.outputs.abort(name)
            raise
        events = self.scheduler.account(batch, result)
        try:
            outputs, stopped = self.outputs.process(events)
        except BaseException:  # some of the news is lost: nobody may go on without it
            self.abort_request([event.request_id for event in events])
            raise
        for name, index in stopped:
            self.scheduler.finish(name, index)
        return outputs

    def restart(self) -> None:
        """Forget every request and cached prefix, and go on with the model as it is loaded.

        A keyboard interrupt may come between any two instructions, so the books it leaves are not trusted.
        """
        executor = self._alive()
        self._inflight.clear()
        self.scheduler = Scheduler(self.config.scheduler, _make_cache(self.config, executor))
        self.outputs = OutputProcessor(self.tokenizer)

    def reset_prefix_cache(self) -> bool:
        """Forget cached prompt beginnings."""
        self.scheduler.cache.reset()
        return True

    def close(self) -> None:
        """Drop model, cache and requests.  The engine can't be used afterwards; torch keeps its number of threads."""
        if self.executor is not None:
            self.scheduler.abort_all()
            self.outputs = OutputProcessor(self.tokenizer)
            self.executor.stop()
            self.executor = None

    def _alive(self) -> Executor:
        if self.executor is None:
            raise EngineDeadError("the engine was closed; make a new one")
        return self.executor

    def __enter__(self) -> LLMEngine:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def _make_cache(config: EngineConfig, executor: Executor) -> KVCache:
    return KVCache(
        executor.groups,
        executor.plan.num_blocks,
        config.cache.block_size,
        config.scheduler.max_num_batched_tokens,
        config.cache.prefix_caching,
    )
