"""From a request's fields and blocks to the chat that it is."""

from __future__ import annotations

from typing import Any

from vllm.entrypoints.serve.anthropic.protocol import CountTokensRequest, InputBlock, MessagesRequest
from vllm.entrypoints.serve.context import Call
from vllm.entrypoints.serve.conversation import as_chat, joined
from vllm.entrypoints.serve.protocol import ChatRequest
from vllm.errors import RequestError
from vllm.inputs.chat import Message

IN_WORDS = {"stop": "stop_sequences", "prompt": "messages", "continue_final_message": "messages"}
"""From a chat's fields to those of a message."""


def chat_of(call: Call) -> Call:
    """Return the call as a chat.  A last message of the assistant's is gone on with.

    Raises RequestError for what is not there.
    """
    body: CountTokensRequest = call.body
    _check(body)
    if not body.messages:
        raise RequestError("messages is an empty list; give at least one message", "messages")
    messages: list[Message] = []
    if body.system:
        messages.append({"role": "system", "content": _content(body.system, "system")})
    for position, message in enumerate(body.messages):
        content = _content(message.content, f"messages[{position}].content")
        messages.append({"role": message.role, "content": content})
    continues = body.messages[-1].role == "assistant"
    chat = ChatRequest(
        messages=joined(messages),
        model=body.model,
        continue_final_message=continues,
        add_generation_prompt=not continues,
        reasoning_effort=(body.output_config or {}).get("effort"),
    )
    if isinstance(body, MessagesRequest):
        chat.max_tokens, chat.stream = body.max_tokens, body.stream
        chat.temperature, chat.top_p, chat.top_k = body.temperature, body.top_p, body.top_k
        chat.stop = body.stop_sequences
    return as_chat(call, chat)


def _check(body: CountTokensRequest) -> None:
    choice = (body.tool_choice or {}).get("type")
    if choice not in (None, "none", "auto"):
        raise RequestError(
            'tool_choice: calling tools is not supported by this version; send {"type": "none"}', "tool_choice"
        )
    if body.tools and choice != "none":
        raise RequestError(
            'tools: calling tools is not supported by this version; leave them out or send tool_choice={"type": "none"}',
            "tools",
        )
    if body.thinking is not None and body.thinking.get("type") != "disabled":
        raise RequestError('thinking is not supported by this version; send {"type": "disabled"}', "thinking")
    for name, value in (body.output_config or {}).items():
        if value is not None and (name != "effort" or not isinstance(value, str)):
            name = f"output_config.{name}"
            raise RequestError(f"{name} is not supported by this version; leave it out", name)


def _content(content: str | list[InputBlock], where: str) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    return [_part(block, f"{where}[{i}]") for i, block in enumerate(content)]


def _part(block: InputBlock, where: str) -> dict[str, Any]:
    if block.type != "image":
        return {"type": "text", "text": _text(block, where)}
    source = block.source or {}
    if source.get("type") == "url" and isinstance(source.get("url"), str):
        return {"type": "image_url", "image_url": {"url": source["url"]}}
    if source.get("type") == "base64" and isinstance(source.get("data"), str):
        return {
            "type": "image_url",
            "image_url": {"url": f"data:{source.get('media_type') or ''};base64,{source['data']}"},
        }
    raise RequestError(f"{where}.source: must be of the type base64, with data, or url, with url", f"{where}.source")


def _text(block: InputBlock, where: str) -> str:
    if block.type != "text":
        raise RequestError(f"{where}.type: {block.type!r} is not supported; the model takes text only", where)
    if block.text is None:
        raise RequestError(f"{where}.text: required, but missing", where)
    return block.text
