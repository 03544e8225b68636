"""POST /v1/chat/completions: answer a conversation; POST /v1/chat/completions/batch: answer several."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from msgspec import UNSET

from vllm.entrypoints.serve.chunks import Chunks, stream_chunks
from vllm.entrypoints.serve.context import Call
from vllm.entrypoints.serve.errors import in_words_of
from vllm.entrypoints.serve.generation import Count, check_stream, finals, metrics_of, prepare
from vllm.entrypoints.serve.http import EventStream, json_reply
from vllm.entrypoints.serve.logprobs import LogprobWriter, prompt_logprobs
from vllm.entrypoints.serve.protocol import (
    BatchChatRequest,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatFields,
    ChatLogprobs,
    ChatMessage,
    ChatRequest,
    Delta,
)
from vllm.entrypoints.serve.rendering import render
from vllm.entrypoints.serve.route import Answer, Route
from vllm.errors import RequestError
from vllm.inputs.chat import Message
from vllm.inputs.prompts import Prompt
from vllm.messages import EngineRequest
from vllm.outputs import CompletionOutput, RequestOutput

_IN_WORDS = {"prompt": "messages", "logprobs": "top_logprobs"}


async def chat(call: Call) -> Answer:
    """Answer a conversation, whole or as a stream."""
    body: ChatRequest = call.body
    name = f"chatcmpl-{call.id(body.request_id)}"
    requests = await _prepare(call, body, [body.messages])
    writer = _Writer(call, body, body.messages)
    created = int(time.time())
    if body.stream:
        chunks = Chunks(
            "chat.completion.chunk", name, created, call.model_name, body, call.settings.enable_force_include_usage
        )
        return EventStream(stream_chunks(call, requests, chunks, writer.deltas))
    (output,) = await finals(call.engine, requests)
    count = Count.of([output], call.settings.enable_prompt_tokens_details)
    choices = [writer.choice(completion) for completion in output.outputs]
    reply = ChatCompletion(name, "chat.completion", created, call.model_name, choices, count.usage())
    if body.return_token_ids:
        reply.prompt_token_ids = output.prompt_token_ids or []
    if body.prompt_logprobs is not None:
        reply.prompt_logprobs = prompt_logprobs(output.prompt_logprobs)
    if call.settings.enable_per_request_metrics:
        reply.metrics = metrics_of(output, count.completion)
    if call.facts is not None:
        call.facts["completion_tokens"] = count.completion
    return json_reply(reply)


async def chat_batch(call: Call) -> Answer:
    """Answer several conversations in one go: the choices of the first, then those of the second, and so on."""
    body: BatchChatRequest = call.body
    if body.stream:
        raise RequestError("the answers to several conversations can't be streamed; leave stream out", "stream")
    if not body.messages:
        raise RequestError("messages is an empty list; give at least one conversation", "messages")
    if len(body.messages) > (most := call.settings.max_prompts):
        raise RequestError(f"{len(body.messages):,} conversations are more than max_prompts={most}", "messages")
    name = f"chatcmpl-{call.id(body.request_id)}"
    requests = await _prepare(call, body, body.messages)
    created = int(time.time())
    outputs = await finals(call.engine, requests)
    count = Count.of(outputs, call.settings.enable_prompt_tokens_details)
    choices: list[ChatChoice] = []
    for messages, output in zip(body.messages, outputs, strict=True):
        writer = _Writer(call, body, messages)
        for completion in output.outputs:
            choice = writer.choice(completion)
            choice.index = len(choices)
            if body.return_token_ids:
                choice.prompt_token_ids = output.prompt_token_ids or []
            if body.prompt_logprobs is not None:
                choice.prompt_logprobs = prompt_logprobs(output.prompt_logprobs)
            choices.append(choice)
    if call.facts is not None:
        call.facts["completion_tokens"] = count.completion
    return json_reply(ChatCompletion(name, "chat.completion", created, call.model_name, choices, count.usage()))


async def _prepare(call: Call, body: ChatFields, conversations: Sequence[list[Message]]) -> list[EngineRequest]:
    """Return the engine's request for each conversation.  Raises RequestError."""
    check_stream(body)
    _check(body)
    max_tokens = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    if max_tokens is None:
        max_tokens = call.model.sampling.defaults.get("max_tokens")
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    params = call.model.sampling.params(body, max_tokens, logprobs, body.prompt_logprobs)
    special = bool(body.add_special_tokens)
    with in_words_of(_IN_WORDS):
        rendered = [await _render(call, conversations, index) for index in range(len(conversations))]
        prompts = [replace(one, cache_salt=body.cache_salt, add_special_tokens=special) for one in rendered]
        return await prepare(call, prompts, params)


async def _render(call: Call, conversations: Sequence[list[Message]], index: int) -> Prompt:
    try:
        return await render(call, conversations[index])
    except RequestError as error:
        if len(conversations) == 1 or error.param != "messages":
            raise
        raise RequestError(f"messages[{index}]: {error}", f"messages[{index}]") from None


def _check(body: ChatFields) -> None:
    """Refuse what is not there, and what contradicts itself."""
    if body.tools and body.tool_choice != "none":
        raise RequestError(
            'calling tools is not supported by this version; leave tools out or send tool_choice="none"', "tools"
        )
    if body.tool_choice not in (None, "none", "auto"):
        raise RequestError('calling tools is not supported by this version; send tool_choice="none"', "tool_choice")
    if body.top_logprobs is not None and not body.logprobs:
        raise RequestError("top_logprobs is only for logprobs=true", "top_logprobs")


class _Writer:
    """Turns the outputs for one conversation into choices."""

    def __init__(self, call: Call, body: ChatFields, messages: list[Message]) -> None:
        as_ids = body.return_tokens_as_token_ids
        self.body = body
        self.role = call.settings.response_role
        self._begun: set[int] = set()
        self.start = _echoed(messages[-1], self.role) if body.echo else ""
        self.logprobs = LogprobWriter(
            call.engine.tokenizer, call.settings.return_tokens_as_token_ids if as_ids is None else as_ids
        )

    def choice(self, completion: CompletionOutput) -> ChatChoice:
        """Return a whole choice."""
        return ChatChoice(
            index=completion.index,
            message=ChatMessage(self.role, self.start + completion.text),
            logprobs=self._logprobs(completion),
            finish_reason=completion.finish_reason,  # type: ignore[arg-type]
            stop_reason=completion.stop_reason,
            token_ids=completion.token_ids if self.body.return_token_ids else UNSET,
        )

    def deltas(self, _: int, output: RequestOutput) -> list[ChatChunkChoice]:
        """Return what is new of the choices, of those of which something shows; each begins with its role."""
        choices: list[ChatChunkChoice] = []
        for completion in output.outputs:
            if completion.index not in self._begun:
                self._begun.add(completion.index)
                choices.append(ChatChunkChoice(completion.index, Delta(self.role, self.start), None, None))
            if (choice := self._delta(completion)) is not None:
                choices.append(choice)
        return choices

    def _delta(self, completion: CompletionOutput) -> ChatChunkChoice | None:
        reason = completion.finish_reason
        logprobs = self._logprobs(completion)
        if not (completion.text or reason or logprobs is not None or self.body.return_token_ids):
            return None
        delta = Delta(content=completion.text) if completion.text else Delta()
        choice = ChatChunkChoice(completion.index, delta, logprobs, reason)  # type: ignore[arg-type]
        if reason is not None:
            choice.stop_reason = completion.stop_reason
        if self.body.return_token_ids:
            choice.token_ids = completion.token_ids
        return choice

    def _logprobs(self, completion: CompletionOutput) -> ChatLogprobs | None:
        if not self.body.logprobs or completion.logprobs is None:
            return None
        return self.logprobs.chat(completion.token_ids, completion.logprobs, self.body.top_logprobs or 0)


def _echoed(message: Message, role: str) -> str:
    """Return the text of a last message of our own, which the answer goes on with."""
    content = message.get("content")
    if message.get("role") != role or not content:
        return ""
    return content if isinstance(content, str) else "\n".join(str(part.get("text", "")) for part in content)


ROUTES = [
    Route(
        "POST",
        "/v1/chat/completions",
        chat,
        "Answer a conversation.",
        body=ChatRequest,
        reply=ChatCompletion,
        purpose="generate",
        computes=True,
    ),
    Route(
        "POST",
        "/v1/chat/completions/batch",
        chat_batch,
        "Answer several conversations in one go.",
        body=BatchChatRequest,
        reply=ChatCompletion,
        purpose="generate",
        computes=True,
    ),
]
