"""POST /invocations: the one door of SageMaker, behind which the body says what is asked for."""

from __future__ import annotations

from vllm.entrypoints.serve.chat import chat
from vllm.entrypoints.serve.completions import completions
from vllm.entrypoints.serve.context import Call
from vllm.entrypoints.serve.protocol import ChatCompletion, ChatRequest, Completion, CompletionRequest
from vllm.entrypoints.serve.route import Answer, Route


async def invocations(call: Call) -> Answer:
    """Answer a conversation or continue a text."""
    return await (chat(call) if isinstance(call.body, ChatRequest) else completions(call))


ROUTES = [
    Route(
        "POST",
        "/invocations",
        invocations,
        "The same as /v1/chat/completions for a body with messages, as /v1/completions for one with a prompt.",
        body={"messages": ChatRequest, "prompt": CompletionRequest},
        reply=(ChatCompletion, Completion),
        computes=True,
    )
]
