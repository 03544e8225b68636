"""What the server needs of an engine.  `vllm.engine.async_engine.AsyncEngine` is one; a test's fake is another."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, Protocol

from vllm.engine.async_engine import Observer
from vllm.engine.output_processor import PooledOutput
from vllm.inputs.chat import ChatRenderer
from vllm.inputs.prepare import Preparer
from vllm.inputs.tokenizer import Tokenizer
from vllm.messages import EngineRequest
from vllm.outputs import RequestOutput
from vllm.pooling_params import Pooling


class Model(Protocol):
    """What is known of a model before its weights are."""

    @property
    def model(self) -> str:
        """As the user named it; empty: the model inside the package."""

    @property
    def max_model_len(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def tokenizer(self) -> str | None:
        """The folder of the tokenizer; None: there is none."""

    @property
    def default_sampling(self) -> dict[str, Any]:
        """Sampling parameters that the model's generation config recommends."""

    @property
    def pooling(self) -> Pooling | None:
        """How it pools; None: it generates."""

    @property
    def hf_config(self) -> Any:
        """What its config.json says."""


class Loaded(Protocol):
    """What is known of a model once it is loaded."""

    @property
    def memory(self) -> str:
        """The plan in words."""

    @property
    def num_blocks(self) -> int:
        """Blocks of the KV cache."""

    @property
    def num_cache_tokens(self) -> int:
        """Tokens that the KV cache holds."""

    @property
    def num_bytes(self) -> int:
        """Bytes of memory that it may take."""

    @property
    def free_bytes(self) -> int:
        """Bytes of memory that were free before it was loaded."""


class Engine(Protocol):
    """An engine behind a border: asked and heard, never looked into."""

    observer: Observer | None
    """Who counts what it does."""
    free_bytes: int | None
    """What its share of memory is a share of; None: what is free when the model is loaded."""

    @property
    def model_config(self) -> Model: ...

    @property
    def tokenizer(self) -> Tokenizer | None: ...

    @property
    def preparer(self) -> Preparer: ...

    @property
    def state(self) -> str:
        """loading, ready, dead (it is being started again) or stopping, also when it has stopped."""

    @property
    def ready(self) -> Loaded | None: ...

    def chat_renderer(self) -> ChatRenderer: ...

    def stream(self, request: EngineRequest) -> AsyncGenerator[list[RequestOutput]]:
        """Run a request; give what has come since the last time.  Closing the iterator aborts the request.

        Raises RequestError, OverloadedError or EngineDeadError.  A row that failed alone ends with the finish reason
        "error" and the message as its stop reason.
        """

    async def encode(self, request: EngineRequest) -> PooledOutput:
        """Run a request of a model that pools, to its end.  Who stops waiting aborts it.

        Raises as `stream`.  A row that failed alone has an `error`.
        """

    async def start(self) -> None:
        """Load the model; return when it is ready.  An engine that was stopped, or could not start, may start again."""

    async def stop(self, timeout: float) -> None:
        """End the engine, after what is running or after `timeout` seconds."""

    def health(self) -> str | None:
        """Return None if all is well, else what is wrong."""
