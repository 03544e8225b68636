"""The engine with its text, in the calling process: prompts in, RequestOutputs or what was pooled out."""

from __future__ import annotations

from typing import Any

from vllm.config import EngineArgs, EngineConfig, ModelConfig
from vllm.engine.core import EngineCore
from vllm.engine.output_processor import Output, OutputProcessor
from vllm.engine.setup import make_chat_renderer, make_preparer, resolve
from vllm.garbage import no_collections
from vllm.inputs.chat import ChatRenderer
from vllm.inputs.prepare import Params
from vllm.inputs.prompts import PromptType, parse_prompts
from vllm.inputs.tokenizer import Tokenizer
from vllm.messages import EngineRequest
from vllm.scheduler.scheduler import Scheduler


class LLMEngine:
    """Runs requests together, step by step, in the calling thread.

    One `step` decides a batch, computes it and books the results; what it returns is news for users.
    """

    def __init__(self, core: EngineCore, tokenizer: Tokenizer | None) -> None:
        self.core = core
        self.config: EngineConfig = core.config
        self.tokenizer = tokenizer
        self.preparer = make_preparer(self.config.model, tokenizer)
        self.outputs = OutputProcessor(tokenizer)

    @classmethod
    def from_engine_args(cls, args: EngineArgs, progress: bool = False) -> LLMEngine:
        """Make an engine.  Raises ConfigError or ModelError for what cannot work, before weights are read if it can."""
        with no_collections():
            config, tokenizer = resolve(args)
            return cls(EngineCore.load(config, progress), tokenizer)

    @property
    def model_config(self) -> ModelConfig:
        return self.config.model

    @property
    def scheduler(self) -> Scheduler:
        return self.core.scheduler

    @property
    def has_work(self) -> bool:
        return self.core.has_work

    def chat_renderer(self) -> ChatRenderer:
        """Return what turns conversations into prompts, with the model's own templates."""
        return make_chat_renderer(self.config.model, self.preparer)

    def add(self, request: EngineRequest) -> None:
        """Queue a request."""
        self.core.add(request)
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

    def step(self) -> list[Output]:
        """Take one step.  An exception of the model, of the tokenizer or of a user's callable ends the step's requests
        and is raised."""
        try:
            events = self.core.step()
        except BaseException:
            for name in self.core.drop():
                self.outputs.abort(name)
            raise
        try:
            outputs, stopped = self.outputs.process(events)
        except BaseException:  # some of the news is lost: nobody may go on without it
            self.abort_request([event.request_id for event in events])
            raise
        for name, index in stopped:
            self.scheduler.finish(name, index)
        return outputs

    def restart(self) -> None:
        """Forget every request and cached prefix, and go on with the model as it is loaded."""
        self.core.restart()
        self.outputs = OutputProcessor(self.tokenizer)

    def reset_prefix_cache(self) -> bool:
        """Forget cached prompt beginnings."""
        self.scheduler.cache.reset()
        return True

    def close(self) -> None:
        """Drop model, cache and requests.  The engine can't be used afterwards; torch keeps its number of threads."""
        self.core.close()
        self.outputs = OutputProcessor(self.tokenizer)

    def __enter__(self) -> LLMEngine:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
