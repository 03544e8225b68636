"""POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from vllm.entrypoints.serve.anthropic.events import Writer, failed
from vllm.entrypoints.serve.anthropic.input import IN_WORDS, chat_of
from vllm.entrypoints.serve.anthropic.protocol import (
    CountTokensRequest,
    InputTokens,
    Message,
    MessageErrorReply,
    MessagesRequest,
    error_body,
    refusal,
)
from vllm.entrypoints.serve.context import Call
from vllm.entrypoints.serve.conversation import count_tokens, prepare_chat
from vllm.entrypoints.serve.errors import in_words_of
from vllm.entrypoints.serve.generation import deltas, finals
from vllm.entrypoints.serve.http import EventStream, json_reply
from vllm.entrypoints.serve.route import Answer, Route
from vllm.messages import EngineRequest


async def messages(call: Call) -> Answer:
    """Answer a conversation, whole or as a stream."""
    body: MessagesRequest = call.body
    with in_words_of(IN_WORDS):
        request = await prepare_chat(chat_of(call))
    writer = Writer(f"msg_{call.id()}", call.model_name, body.max_tokens)
    if body.stream:
        return EventStream(_events(call, request, writer), failed)
    (output,) = await finals(call.engine, [request])
    reply = writer.message(output)
    _note(call, writer)
    return json_reply(reply)


async def count(call: Call) -> Answer:
    """Return how many tokens a conversation takes."""
    with in_words_of(IN_WORDS):
        return json_reply(InputTokens(await count_tokens(chat_of(call))))


async def _events(call: Call, request: EngineRequest, writer: Writer) -> AsyncGenerator[bytes, None]:
    async with aclosing(deltas(call.engine, [request])) as news:
        async for _, outputs in news:
            shown = b"".join([writer.events(output) for output in outputs])
            if shown:
                yield shown
    _note(call, writer)


def _note(call: Call, writer: Writer) -> None:
    if call.facts is not None:
        call.facts["completion_tokens"] = writer.count.completion


ROUTES = [
    Route(
        "POST",
        "/v1/messages",
        messages,
        "Answer a conversation, as Anthropic's API does.",
        body=MessagesRequest,
        reply=Message,
        purpose="generate",
        computes=True,
        error=error_body,
        error_reply=MessageErrorReply,
        refused=refusal,
    ),
    Route(
        "POST",
        "/v1/messages/count_tokens",
        count,
        "Count the tokens of a conversation.",
        body=CountTokensRequest,
        reply=InputTokens,
        error=error_body,
        error_reply=MessageErrorReply,
        refused=refusal,
    ),
]
