"""From a request's fields and items to the chat that it is."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from vllm.entrypoints.serve.context import Call
from vllm.entrypoints.serve.conversation import as_chat, count_tokens, joined
from vllm.entrypoints.serve.protocol import ChatRequest
from vllm.entrypoints.serve.responses.protocol import LOGPROBS, InputItem, InputPart, ResponsesRequest
from vllm.errors import RequestError
from vllm.inputs.chat import Message

IN_WORDS = {"messages": "input", "prompt": "input", "logprobs": "top_logprobs"}
"""From a chat's fields to those of a response."""

_ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
# Templates know no developer: they would leave the message out, or refuse it.
_SAME = (
    "model", "temperature", "top_p", "stream", "top_k", "min_p", "seed", "stop", "presence_penalty",
    "frequency_penalty", "repetition_penalty", "min_tokens", "ignore_eos", "chat_template_kwargs", "priority",
    "cache_salt",
)  # fmt: skip
_HARMLESS = {"context": "auto", "mode": "standard"}


def check(body: ResponsesRequest) -> None:
    """Raise RequestError for what is not there, and for what contradicts itself."""
    if body.tool_choice not in (None, "none", "auto"):
        raise RequestError('calling tools is not supported by this version; send tool_choice="none"', "tool_choice")
    if body.tools and body.tool_choice != "none":
        raise RequestError(
            'calling tools is not supported by this version; leave tools out or send tool_choice="none"', "tools"
        )
    form = body.text.format if body.text is not None else None
    if form is not None and form.get("type") != "text":
        raise RequestError('structured output is not supported by this version; send {"type": "text"}', "text.format")
    for name, value in (body.reasoning or {}).items():
        if name != "effort" and value is not None and value != _HARMLESS.get(name):
            raise RequestError(f"reasoning.{name} is not supported; only effort is", f"reasoning.{name}")
    if body.top_logprobs and LOGPROBS not in (body.include or ()):
        raise RequestError(f'top_logprobs is only for include=["{LOGPROBS}"]', "top_logprobs")
    if body.stream_options is not None and not body.stream:
        raise RequestError("stream_options is only for stream=true", "stream_options")
    if any(len(key) > 64 for key in body.metadata or ()):
        raise RequestError("metadata: a key has more than 64 characters", "metadata")
    if body.cache_salt == "":
        raise RequestError("cache_salt is empty; leave it out or give a text", "cache_salt")


def messages_of(given: str | Sequence[InputItem]) -> list[Message]:
    """Return the messages of an input.  Raises RequestError for what is none of text."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if not given:
        raise RequestError("input is an empty list; give at least one message", "input")
    return [_message(item, f"input[{position}]") for position, item in enumerate(given)]


def _message(item: InputItem, where: str) -> Message:
    if item.type not in (None, "message"):
        raise RequestError(f"{where}.type: {item.type!r} is not supported; send messages", f"{where}.type")
    role = _ROLES.get(item.role or "")
    if role is None:
        raise RequestError(f"{where}.role: must be one of {', '.join(_ROLES)}, got {item.role!r}", f"{where}.role")
    if item.content is None:
        raise RequestError(f"{where}.content: required, but missing", f"{where}.content")
    if isinstance(item.content, str):
        return {"role": role, "content": item.content}
    return {
        "role": role,
        "content": [_part(part, f"{where}.content[{position}]") for position, part in enumerate(item.content)],
    }


def _part(part: InputPart, where: str) -> dict[str, Any]:
    if part.type == "input_image":
        if part.image_url is None:
            raise RequestError(
                f"{where}.image_url: required, but missing; files are not kept here", f"{where}.image_url"
            )
        return {"type": "image_url", "image_url": {"url": part.image_url}}
    return {"type": "text", "text": _text(part, where)}


def _text(part: InputPart, where: str) -> str:
    if part.type not in ("input_text", "output_text", "text", "refusal"):
        raise RequestError(f"{where}.type: {part.type!r} is not supported; the model takes text only", f"{where}.type")
    name = "refusal" if part.type == "refusal" else "text"
    text = part.refusal if part.type == "refusal" else part.text
    if text is None:
        raise RequestError(f"{where}.{name}: required, but missing", f"{where}.{name}")
    return text


async def chat_of(call: Call, messages: list[Message]) -> Call:
    """Return the call as a chat about `messages`, under the instructions and within the length that it asks for."""
    body: ResponsesRequest = call.body
    if body.instructions:
        messages = [{"role": "system", "content": body.instructions}, *messages]
    head = [*takewhile(lambda message: message["role"] == "system", messages)]
    rest = messages[len(head) :]
    head = joined(head)  # most templates know one message of the system, at the start
    chat = as_chat(
        call,
        ChatRequest(
            messages=head + rest,
            max_tokens=body.max_output_tokens,
            reasoning_effort=(body.reasoning or {}).get("effort"),
            **{name: getattr(body, name) for name in _SAME},
        ),
    )
    if body.truncation == "auto" and call.engine.tokenizer is not None:
        await _shorten(chat, head, rest)
    return chat


async def _shorten(chat: Call, head: list[Message], rest: list[Message]) -> None:
    """Leave out as few of the oldest messages as make the chat fit; what is left begins with a user's.

    Some room is kept for the answer: as much as it asks for, but at most half of the context.
    """
    body, length = chat.body, chat.engine.model_config.max_model_len
    room = length - max(1, min(body.max_tokens or 1, length // 2))

    async def fits(start: int) -> bool:
        body.messages = head + rest[start:]
        return await count_tokens(chat) <= room

    if await fits(0):
        return
    starts = [position for position, message in enumerate(rest) if message["role"] == "user"]
    low, high = 0, len(starts) - 1
    while low < high:  # the last one is not tried: if nothing fits, preparing it says so
        middle = (low + high) // 2
        if await fits(starts[middle]):
            high = middle
        else:
            low = middle + 1
    body.messages = head + rest[starts[low] if starts else 0 :]
