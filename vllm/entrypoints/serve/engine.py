"""What the server needs of an engine.  `vllm.engine.async_engine.AsyncEngine` is one; a test's fake is another."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Protocol

from vllm.inputs.chat import ChatRenderer
from vllm.inputs.prepare import Preparer
from vllm.inputs.tokenizer import Tokenizer
from vllm.messages import EngineRequest
from vllm.outputs import RequestOutput


class Facts(Protocol):
    """What is known of a model before its weights are."""

    @property
    def model(self) -> str:
        """As the user named it; empty: the model inside the package."""

    @property
    def max_model_len(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def default_sampling(self) -> dict[str, Any]:
        """Sampling parameters that the model's generation config recommends."""


class Engine(Protocol):
    """An engine behind a border: asked and heard, never looked into."""

    @property
    def facts(self) -> Facts: ...

    @property
    def tokenizer(self) -> Tokenizer | None: ...

    @property
    def preparer(self) -> Preparer: ...

    @property
    def state(self) -> str:
        """loading, ready, dead (it is being started again) or stopping."""

    def chat_renderer(self) -> ChatRenderer: ...

    def generate(self, request: EngineRequest) -> AsyncIterator[RequestOutput]:
        """Run a request; closing the iterator aborts it.

        Raises RequestError, OverloadedError or EngineDeadError.  A row that failed alone ends with the finish reason
        "error" and the message as its stop reason.
        """

    async def start(self) -> None:
        """Load the model; return when it is ready."""

    async def stop(self, timeout: float) -> None:
        """End the engine, after what is running or after `timeout` seconds."""

    def health(self) -> str | None:
        """Return None if all is well, else what is wrong."""

    def describe(self) -> str:
        """Return what was planned, in a few words, once ready: weights, cache, tokens that it holds."""
