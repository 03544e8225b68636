"""What other APIs' endpoints share: each of their requests is a chat in other words.

Its fields become a `ChatRequest`, on which rendering and preparing work; what they refuse is told in the API's own words.
"""

from __future__ import annotations

import copy
from dataclasses import replace

from vllm.entrypoints.serve.context import Call
from vllm.entrypoints.serve.errors import RETRY_AFTER, HttpError
from vllm.entrypoints.serve.generation import prepare
from vllm.entrypoints.serve.http import encode
from vllm.entrypoints.serve.protocol import ChatRequest
from vllm.entrypoints.serve.rendering import render, size_of
from vllm.errors import RequestError
from vllm.inputs.chat import Message
from vllm.messages import EngineRequest
from vllm.outputs import CompletionOutput, RequestOutput


def as_chat(call: Call, body: ChatRequest) -> Call:
    """Return a call with the body that the chat endpoint would have got."""
    chat = copy.copy(call)
    chat.body = body
    return chat


async def prepare_chat(chat: Call, logprobs: int | None = None) -> EngineRequest:
    """Return the engine's request for a chat.  `logprobs`: how many per position.  Raises RequestError."""
    body: ChatRequest = chat.body
    sampling = chat.model.sampling
    max_tokens = sampling.defaults.get("max_tokens") if body.max_tokens is None else body.max_tokens
    params = sampling.params(body, max_tokens, logprobs, None)
    prompt = replace(await render(chat, body.messages), cache_salt=body.cache_salt)
    return (await prepare(chat, [prompt], params))[0]


async def count_tokens(chat: Call) -> int:
    """Return how many tokens a chat's prompt has.  Raises RequestError."""
    tokenizer = chat.engine.tokenizer
    if tokenizer is None:
        raise RequestError("the engine runs without a tokenizer (skip_tokenizer_init)", "model")
    prompt = await render(chat, chat.body.messages)
    return len(await chat.server.work(size_of(chat, [prompt]), chat.engine.preparer.tokens, prompt))


def joined(messages: list[Message]) -> list[Message]:
    """Return messages with those that follow each other in the same role made one, of several parts."""
    result: list[Message] = []
    for message in messages:
        if not result or result[-1]["role"] != message["role"]:
            result.append(message)
        else:
            result[-1] = {"role": message["role"], "content": _parts(result[-1]) + _parts(message)}
    return result


def _parts(message: Message) -> list[dict[str, str]]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def only_completion(output: RequestOutput) -> CompletionOutput:
    """Return the completion of a request that has one.  Raises HttpError if the engine gave it up."""
    completion = output.outputs[0]
    if completion.finish_reason == "abort":
        raise HttpError(503, "the engine gave the request up; try again", retry_after=RETRY_AFTER)
    return completion


def named_event(name: str, data: object) -> bytes:
    """Return an event that has a name beside its data."""
    return b"event: " + name.encode() + b"\ndata: " + encode(data) + b"\n\n"
